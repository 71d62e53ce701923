//! The paths of the control socket by which packages are made complete, and by which the cache directory is looked after.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use tokio::time::{Interval, MissedTickBehavior, interval};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::api::{
    AttachmentId, CacheReport, Problem, PruneRequest, PullProgress, UnpinRequest, Unpinned, VerifyProgress,
};
use super::lines::{Lines, Teller};
use super::routes::{attachment_id, body};
use crate::host::{Peer, Pull, Verification};
use crate::limits::PROGRESS_BEAT;
use crate::{Error, Host};

/// These paths.
pub(super) fn routes() -> OpenApiRouter<Host> {
    OpenApiRouter::new()
        .routes(routes!(pull))
        .routes(routes!(cache))
        .routes(routes!(verify))
        .routes(routes!(prune))
        .routes(routes!(unpin))
}

/// Makes the version of an attachment complete in the cache directory and keeps it there, for as long as the client reads
/// the answer: a line of JSON twice a second. After the last one, if it is complete, it is safe to disconnect.
#[utoipa::path(post, path = "/v1/attachments/{id}/pull", params(("id" = AttachmentId, Path)), responses(
    (status = 200, body = PullProgress, content_type = "application/x-ndjson"),
    (status = 403, body = Problem),
    (status = 404, body = Problem),
    (status = 409, body = Problem, description = "It is being pulled already"),
    (status = 429, body = Problem, description = "There are too many pulls"),
))]
async fn pull(State(host): State<Host>, peer: Peer, Path(id): Path<String>) -> Result<Response, Error> {
    let pull = host.pull(peer, &attachment_id(&id)?)?;
    let (teller, lines) = Lines::new();
    tokio::spawn(tell_pull(pull, teller));
    Ok(lines.into_response())
}

async fn tell_pull(pull: Pull, teller: Teller) {
    let mut beats = beats();
    let end = {
        let mut running = std::pin::pin!(pull.run());
        loop {
            tokio::select! {
                // The pull ends here: nobody would see it.
                () = teller.is_alone() => return,
                end = &mut running => break end,
                _ = beats.tick() => teller.say(&pull.progress()),
            }
        }
    };
    // Another pull may begin when this one's end is known.
    drop(pull);
    teller.say_last(&end).await;
}

/// How full the cache directory is, and what is kept in it for good. For the server's own user and root, as all that follows.
#[utoipa::path(get, path = "/v1/cache", responses(
    (status = 200, body = CacheReport),
    (status = 403, body = Problem),
    (status = 404, body = Problem, description = "The server has no cache directory"),
    (status = 503, body = Problem, description = "The server drains"),
))]
async fn cache(State(host): State<Host>, peer: Peer) -> Result<Json<CacheReport>, Error> {
    host.cache(peer).await.map(Json)
}

/// Reads every chunk of the cache directory, compares it with its digest and drops the damaged ones; tells twice a second how
/// far it is. It goes on when its client leaves.
#[utoipa::path(post, path = "/v1/cache/verify", responses(
    (status = 200, body = VerifyProgress, content_type = "application/x-ndjson"),
    (status = 403, body = Problem),
    (status = 404, body = Problem, description = "The server has no cache directory"),
    (status = 409, body = Problem, description = "It is being verified already"),
    (status = 503, body = Problem, description = "The server drains"),
))]
async fn verify(State(host): State<Host>, peer: Peer) -> Result<Response, Error> {
    let verification = host.verify(peer)?;
    let (teller, lines) = Lines::new();
    tokio::spawn(tell_verification(verification, teller));
    Ok(lines.into_response())
}

async fn tell_verification(mut verification: Verification, teller: Teller) {
    let mut beats = beats();
    loop {
        let read_bytes = verification.read_bytes();
        tokio::select! {
            () = teller.is_alone() => return,
            verified = verification.verified() => {
                // A panic has told of itself, and the answer is cut.
                let Ok(verified) = verified else { return };
                let end = VerifyProgress { read_bytes: verified.bytes, verified: Some(verified) };
                return teller.say_last(&end).await;
            }
            _ = beats.tick() => teller.say(&VerifyProgress { read_bytes, verified: None }),
        }
    }
}

/// Removes what is not kept for good from the cache directory, the oldest first, until no more than so many bytes are left.
#[utoipa::path(post, path = "/v1/cache/prune", request_body = PruneRequest, responses(
    (status = 200, body = CacheReport),
    (status = 400, body = Problem, description = "The request is wrong"),
    (status = 403, body = Problem),
    (status = 404, body = Problem, description = "The server has no cache directory"),
    (status = 500, body = Problem),
    (status = 503, body = Problem, description = "The server drains"),
))]
async fn prune(State(host): State<Host>, peer: Peer, request: Request) -> Result<Json<CacheReport>, Error> {
    let PruneRequest { to_bytes } = body(request).await?;
    host.prune(peer, to_bytes).await.map(Json)
}

/// Lets go of versions that are kept for good.
#[utoipa::path(post, path = "/v1/cache/unpin", request_body = UnpinRequest, responses(
    (status = 200, body = Unpinned),
    (status = 400, body = Problem, description = "The request is wrong, or nothing of what is kept is called so"),
    (status = 403, body = Problem),
    (status = 404, body = Problem, description = "The server has no cache directory"),
    (status = 500, body = Problem),
    (status = 503, body = Problem, description = "The server drains"),
))]
async fn unpin(State(host): State<Host>, peer: Peer, request: Request) -> Result<Json<Unpinned>, Error> {
    let UnpinRequest { which } = body(request).await?;
    host.unpin(peer, which).await.map(Json)
}

pub(super) fn beats() -> Interval {
    let mut beats = interval(PROGRESS_BEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beats
}
