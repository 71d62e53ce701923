//! What the server has counted, as Prometheus reads it. docs/operations.md has names and units.

use std::fmt;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::{Error, Host};

const CONTENT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Counts when it is asked, so that nothing is counted twice.
#[derive(Debug)]
struct Counts(Host);

impl Collector for Counts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (counter, sum) in self.0.sums().iter() {
            let value = ConstCounter::new(sum);
            let unit = counter.is_bytes.then_some(&Unit::Bytes);
            value.encode(encoder.encode_descriptor(counter.name, counter.help, unit, value.metric_type())?)?;
        }
        let attached: Vec<_> = self.0.attached().iter().map(|attachment| attachment.stats()).collect();
        let holders: u64 = attached.iter().map(|stats| stats.holders).sum();
        let pulls = attached.iter().filter(|stats| stats.pull.is_some()).count();
        let gauges = [
            ("vmnetx_attachments", "Attachments that there are", None, attached.len() as u64),
            ("vmnetx_holders", "Leases and NBD connections that are open", None, holders),
            ("vmnetx_pulls", "Pulls that run", None, pulls as u64),
            ("vmnetx_memory_tier", "Plain chunks in the memory tier", Some(&Unit::Bytes), self.0.memory_bytes()),
            ("vmnetx_disk_tier", "Stored chunks in the disk tier", Some(&Unit::Bytes), self.0.disk_bytes()),
            ("vmnetx_mapped", "Saved RAM that VMs map", Some(&Unit::Bytes), self.0.mapped_bytes()),
            ("vmnetx_draining", "1 when no more attachments are taken", None, u64::from(self.0.is_draining())),
        ];
        for (name, help, unit, value) in gauges {
            let value = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            value.encode(encoder.encode_descriptor(name, help, unit, value.metric_type())?)?;
        }
        Ok(())
    }
}

/// Answers `GET /metrics`.
pub(super) fn router(host: Host) -> Router {
    Router::new().route("/metrics", get(async |State(host): State<Host>| answer(&host))).with_state(host)
}

/// The metrics as a response.
pub(super) fn answer(host: &Host) -> Response {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Counts(host.clone())));
    let mut body = String::new();
    match text::encode(&mut body, &registry) {
        Ok(()) => ([(CONTENT_TYPE, CONTENT)], body).into_response(),
        // Strings take everything.
        Err(_) => Error::Unspeakable("the count").into_response(),
    }
}
