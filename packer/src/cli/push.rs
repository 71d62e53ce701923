//! `push`: makes a bucket hold a repository.

use std::path::PathBuf;
use std::time::Duration;

use url::Url;
use vmnetx_format::Name;

use super::common::ReportArgs;
use super::output::{put, shown_bytes, start_log};
use crate::{Conditions, Endpoint, Error, PushOptions, PushReport, Target, push};

/// Make a bucket of an S3-compatible object store hold what the links of the repository REPO reach.
///
/// Only what is missing is uploaded, and links are replaced last, unless somebody else has replaced them. Credentials come
/// from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or from the profile AWS_PROFILE of the shared
/// credentials file.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The directory of the repository.
    repo: PathBuf,
    /// The bucket, or a folder in it.
    #[arg(value_name = "s3://BUCKET[/PREFIX]")]
    target: Target,
    /// Push only these packages.
    #[arg(long, value_name = "NAME", num_args = 1..)]
    name: Vec<Name>,
    /// The URL of the server; without it AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, else Amazon's.
    #[arg(long, value_name = "URL")]
    endpoint: Option<Url>,
    /// The region; without it AWS_REGION or AWS_DEFAULT_REGION, else us-east-1.
    #[arg(long, value_name = "REGION")]
    region: Option<String>,
    /// Use an endpoint without TLS on another host.
    #[arg(long)]
    allow_http: bool,
    /// Replace links in the bucket even if they are no earlier ones of REPO.
    #[arg(long)]
    force_link: bool,
    /// Replace links on a server without conditional puts: another publisher's may be lost.
    #[arg(long)]
    no_conditional_put: bool,
    /// Then delete what REPO no longer has, if all links in the bucket are those of REPO.
    #[arg(long)]
    prune: bool,
    /// Delete only what was uploaded longer ago than this.
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = humantime::parse_duration, requires = "prune")]
    grace: Duration,
    /// Change nothing, and tell what would be done.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    report: ReportArgs,
}

pub(super) fn run(args: Args) -> Result<(), Error> {
    start_log("warn");
    let reporting = args.report;
    let progress = reporting.progress("uploaded");
    let report = push(&options(args), &progress)?;
    drop(progress);
    reporting.put(&report, print);
    Ok(())
}

fn options(args: Args) -> PushOptions {
    PushOptions {
        repository: args.repo,
        names: args.name,
        target: args.target,
        endpoint: Endpoint { url: args.endpoint, region: args.region, allow_http: args.allow_http },
        force_link: args.force_link,
        conditions: if args.no_conditional_put { Conditions::Without } else { Conditions::With },
        prune: args.prune.then_some(args.grace),
        dry_run: args.dry_run,
    }
}

fn print(report: &PushReport) {
    let PushReport { target, objects, uploaded_objects, .. } = report;
    for link in &report.links {
        let what = match (link.changed, report.dry_run) {
            (true, false) => "pushed",
            (true, true) => "to push",
            (false, _) => "the same",
        };
        put(&format!("{what:9} {target}/{}.vmnetx, serial {}, version {}", link.name, link.serial, link.version));
    }
    let (uploaded, deleted) = if report.dry_run { ("to upload", "to delete") } else { ("uploaded", "deleted") };
    let bytes = shown_bytes(report.uploaded_bytes);
    put(&format!("{uploaded:9} {uploaded_objects} of {objects} objects, {bytes}"));
    for object in &report.pruned {
        put(&format!("{deleted:9} {}, {}", object.path, shown_bytes(object.bytes)));
    }
}
