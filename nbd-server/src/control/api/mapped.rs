//! What is said of saved RAM that VMs map.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Problem;

/// Asks for the saved RAM of an attachment as something to map.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MapRequest {
    /// Whether to fetch what of it is not on the server's host; else that is a refusal.
    #[serde(default)]
    pub bring: bool,
}

/// How far saved RAM can be mapped. The last line has a socket or a problem.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MapProgress {
    /// The size of the RAM block `pc.ram`.
    pub size_bytes: u64,
    /// Bytes of it that were read and verified, zeros included.
    pub done_bytes: u64,
    /// The Unix socket at which whoever connects is sent one byte, and with it a memfd of this size that nobody can change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// Why it cannot be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}
