//! The arguments of commands that read one link.

use crate::Location;
use crate::origin::AccessArgs;
use crate::trust::TrustArgs;

/// A link, whether it is believed, and how its reader shows himself to hosts.
#[derive(Debug, Clone, clap::Args)]
pub struct LinkArgs {
    /// An http(s) or vmnetx+http(s) URL, or a path to a link file; #b3=DIGEST asks for one version.
    pub link: Location,
    /// Which links are believed.
    #[command(flatten)]
    pub trust: TrustArgs,
    /// How the reader shows himself to hosts, and knows them.
    #[command(flatten)]
    pub access: AccessArgs,
}
