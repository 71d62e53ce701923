//! Which path of the control socket does what.

use axum::body::to_bytes;
use axum::extract::{Path, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{StatusCode, request::Parts};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use tokio::time::{MissedTickBehavior, interval, timeout};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vmnetx_store::failure::{Class, Told};

use super::api::{AttachRequest, Attached, AttachmentId, AttachmentStats, Beat, Problem, Stats, Versions};
use super::lines::{Lines, Teller};
use super::{keep, mapped, metrics};
use crate::host::{Holder, Peer};
use crate::limits::{CONTROL_REQUEST_BYTES_MAX, CONTROL_REQUEST_TIMEOUT, LEASE_BEAT};
use crate::{Error, Host};

/// The description, but for the paths.
#[derive(OpenApi)]
#[openapi(info(
    title = "vmnetx-nbd control",
    description = "HTTP on the Unix socket of a server: attaches packages and tells what was done for them."
))]
struct Description;

/// All routes and their description.
pub(super) fn router(host: Host) -> (Router, utoipa::openapi::OpenApi) {
    let (router, description) = described().split_for_parts();
    let router =
        router.fallback(async || Error::BadRequest("there is no such path".to_owned()).with(StatusCode::NOT_FOUND));
    (router.with_state(host), description)
}

/// The description alone.
pub(super) fn description() -> utoipa::openapi::OpenApi {
    described().split_for_parts().1
}

fn described() -> OpenApiRouter<Host> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(version))
        .routes(routes!(drain))
        .routes(routes!(metrics))
        .routes(routes!(openapi))
        .routes(routes!(stats))
        .routes(routes!(list))
        .routes(routes!(attach, attachment, detach))
        .routes(routes!(hold))
        .routes(routes!(record))
        .routes(routes!(ordered))
        .merge(keep::routes())
        .merge(mapped::routes())
}

/// What the server is. The same in every version of the interface.
#[utoipa::path(get, path = "/version", responses((status = 200, body = Versions)))]
async fn version(State(host): State<Host>) -> Json<Versions> {
    Json(host.versions())
}

/// Takes no more attachments and ends when the last one is gone. The same in every version of the interface.
#[utoipa::path(post, path = "/drain", responses(
    (status = 202, body = Versions),
    (status = 403, body = Problem, description = "Only the server's own user and root may"),
))]
async fn drain(State(host): State<Host>, peer: Peer) -> Result<(StatusCode, Json<Versions>), Error> {
    if !peer.is_master {
        return Err(Error::Forbidden("only the server's own user may drain it"));
    }
    tracing::info!("draining");
    host.drain();
    Ok((StatusCode::ACCEPTED, Json(host.versions())))
}

/// Counts and sizes as Prometheus reads them.
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String, content_type = "application/openmetrics-text")))]
async fn metrics(State(host): State<Host>) -> Response {
    metrics::answer(&host)
}

/// This description.
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, body = Object)))]
async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(description())
}

/// What the server did, and the attachments that the asker may see.
#[utoipa::path(get, path = "/v1/stats", responses((status = 200, body = Stats)))]
async fn stats(State(host): State<Host>, peer: Peer) -> Json<Stats> {
    Json(host.stats(peer))
}

/// The attachments that the asker may see: its own; for the server's user and root all.
#[utoipa::path(get, path = "/v1/attachments", responses((status = 200, body = [AttachmentStats])))]
async fn list(State(host): State<Host>, peer: Peer) -> Json<Vec<AttachmentStats>> {
    Json(host.list(peer))
}

/// Attaches a package: verifies its link and manifest, and serves its disks on a socket for this attachment alone. The same
/// request again gives the same answer.
#[utoipa::path(put, path = "/v1/attachments/{id}", params(("id" = AttachmentId, Path)), request_body = AttachRequest, responses(
    (status = 200, body = Attached),
    (status = 400, body = Problem, description = "The request is wrong"),
    (status = 403, body = Problem, description = "It is another user's, or a path that is for the server's user alone"),
    (status = 409, body = Problem, description = "The id is taken by something else"),
    (status = 422, body = Problem, description = "What was read is damaged or not to be trusted"),
    (status = 429, body = Problem, description = "There are too many attachments"),
    (status = 500, body = Problem),
    (status = 502, body = Problem, description = "The origin cannot be reached, or does not answer as it should"),
    (status = 503, body = Problem, description = "The server drains"),
))]
async fn attach(
    State(host): State<Host>,
    peer: Peer,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<Attached>, Error> {
    let (id, request): (_, AttachRequest) = (attachment_id(&id)?, body(request).await?);
    host.attach(peer, &id, &request).await.map(Json)
}

/// What was done for an attachment.
#[utoipa::path(get, path = "/v1/attachments/{id}", params(("id" = AttachmentId, Path)), responses(
    (status = 200, body = AttachmentStats),
    (status = 403, body = Problem),
    (status = 404, body = Problem),
))]
async fn attachment(
    State(host): State<Host>,
    peer: Peer,
    Path(id): Path<String>,
) -> Result<Json<AttachmentStats>, Error> {
    Ok(Json(host.find(peer, &attachment_id(&id)?)?.stats()))
}

/// Ends an attachment, and tells what was done for it. Its socket is gone when the answer comes.
#[utoipa::path(delete, path = "/v1/attachments/{id}", params(("id" = AttachmentId, Path)), responses(
    (status = 200, body = AttachmentStats),
    (status = 403, body = Problem),
    (status = 404, body = Problem),
))]
async fn detach(State(host): State<Host>, peer: Peer, Path(id): Path<String>) -> Result<Json<AttachmentStats>, Error> {
    host.detach(peer, &attachment_id(&id)?).await.map(Json)
}

/// Holds an attachment for as long as the client reads the answer: a line of JSON at once and every few seconds, until one
/// of both ends.
#[utoipa::path(get, path = "/v1/attachments/{id}/hold", params(("id" = AttachmentId, Path)), responses(
    (status = 200, body = Beat, content_type = "application/x-ndjson"),
    (status = 403, body = Problem),
    (status = 404, body = Problem),
))]
async fn hold(State(host): State<Host>, peer: Peer, Path(id): Path<String>) -> Result<Response, Error> {
    let holder = Holder::new(&host.find(peer, &attachment_id(&id)?)?);
    let (teller, lines) = Lines::new();
    tokio::spawn(beat(holder, teller));
    Ok(lines.into_response())
}

/// What was recorded of an attachment that was made with `record`, as `vmnetx-pack order` takes it.
#[utoipa::path(get, path = "/v1/attachments/{id}/record", params(("id" = AttachmentId, Path)), responses(
    (status = 200, body = Object),
    (status = 403, body = Problem),
    (status = 404, body = Problem),
    (status = 500, body = Problem),
))]
async fn record(State(host): State<Host>, peer: Peer, Path(id): Path<String>) -> Result<Response, Error> {
    let record = host.find(peer, &attachment_id(&id)?)?.record()?;
    let bytes = record.encode().map_err(Error::Unrecordable)?;
    Ok(([(CONTENT_TYPE, "application/json")], bytes).into_response())
}

/// What the recorded order of an attachment says is touched, in the form of a record; it waits until the order is here. There
/// are no touches where there is no order, or none is replayed.
#[utoipa::path(get, path = "/v1/attachments/{id}/order", params(("id" = AttachmentId, Path)), responses(
    (status = 200, body = Object),
    (status = 403, body = Problem),
    (status = 404, body = Problem),
    (status = 500, body = Problem),
))]
async fn ordered(State(host): State<Host>, peer: Peer, Path(id): Path<String>) -> Result<Response, Error> {
    let record = host.find(peer, &attachment_id(&id)?)?.ordered().await?;
    let bytes = record.encode().map_err(Error::Unrecordable)?;
    Ok(([(CONTENT_TYPE, "application/json")], bytes).into_response())
}

pub(super) fn attachment_id(text: &str) -> Result<AttachmentId, Error> {
    text.parse().map_err(|error| Error::BadRequest(format!("{error}")))
}

/// A request's body, which must be there soon and be small.
pub(super) async fn body<T: DeserializeOwned>(request: Request) -> Result<T, Error> {
    let bytes = timeout(CONTROL_REQUEST_TIMEOUT, to_bytes(request.into_body(), CONTROL_REQUEST_BYTES_MAX)).await;
    let bytes = bytes.map_err(|_| Error::BadRequest("the request's body takes too long".to_owned()))?;
    let bytes = bytes.map_err(|error| Error::BadRequest(format!("the request's body: {error}")))?;
    serde_json::from_slice(&bytes).map_err(|error| Error::BadRequest(format!("the request: {error}")))
}

/// Tells the client of a lease now and then that the server lives.
async fn beat(holder: Holder, teller: Teller) {
    let mut beats = interval(LEASE_BEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let line = Beat { id: holder.id().clone() };
    loop {
        tokio::select! {
            () = teller.is_alone() => return,
            () = holder.ended() => return,
            // A client that reads nothing still holds its connection, and so its lease.
            _ = beats.tick() => teller.say(&line),
        }
    }
}

impl<S: Sync> axum::extract::FromRequestParts<S> for Peer {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        // Every connection to a Unix socket has one.
        parts.extensions.get::<Self>().copied().ok_or(Error::Forbidden("nobody is at the other end"))
    }
}

impl Error {
    fn with(self, status: StatusCode) -> Response {
        (status, Json(Problem::of(&self))).into_response()
    }

    const fn status(&self) -> Option<StatusCode> {
        Some(match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::NoAttachment | Self::NoCache | Self::NoMemory => StatusCode::NOT_FOUND,
            Self::NotHere | Self::OtherAttachment | Self::BeingPulled | Self::BeingVerified => StatusCode::CONFLICT,
            Self::TooManyAttachments | Self::TooManyPulls => StatusCode::TOO_MANY_REQUESTS,
            Self::Draining => StatusCode::SERVICE_UNAVAILABLE,
            Self::NotRecorded => StatusCode::NOT_FOUND,
            _ => return None,
        })
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = self.status().unwrap_or_else(|| match self.class() {
            Class::Usage => StatusCode::BAD_REQUEST,
            Class::Integrity => StatusCode::UNPROCESSABLE_ENTITY,
            Class::Network => StatusCode::BAD_GATEWAY,
            Class::Failure | Class::Host => StatusCode::INTERNAL_SERVER_ERROR,
        });
        self.with(status)
    }
}
