//! Why a domain XML is not taken.

use std::fmt::Write;

use super::{DropPath, Remark};
use crate::limits::{DOMAIN_BYTES_MAX, DOMAIN_DEPTH_MAX, DOMAIN_NAMESPACES_MAX, DOMAIN_NODES_MAX, DOMAIN_REMARKS_MAX};

/// A text that is not the XML of a domain, or a domain that cannot be published as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    /// The text is longer than any domain.
    #[error("the domain XML has more than {DOMAIN_BYTES_MAX} bytes")]
    TooLong,
    /// The text is in another encoding, or is no text.
    #[error("the domain XML is not UTF-8")]
    NotText,
    /// Not well-formed. The text names line and column.
    #[error("this is no XML: {0}")]
    Syntax(String),
    /// A document type, which could define entities; libvirt writes none.
    #[error("the domain XML has a DOCTYPE, which libvirt never writes and which is not read")]
    Doctype,
    /// More elements than any domain has.
    #[error("the domain XML has more than {DOMAIN_NODES_MAX} elements and texts")]
    TooManyNodes,
    /// More namespaces than any domain has.
    #[error("the domain XML has more than {DOMAIN_NAMESPACES_MAX} namespaces")]
    TooManyNamespaces,
    /// Elements deeper inside others than in any domain.
    #[error("the domain XML has more than {DOMAIN_DEPTH_MAX} elements inside one another")]
    TooDeep,
    /// More that is not understood than in any domain.
    #[error("more than {DOMAIN_REMARKS_MAX} elements and attributes of the domain XML are not known")]
    TooManyRemarks,
    /// Another XML.
    #[error("this is no domain: the outermost element is {0:?}, not \"domain\" as `virsh dumpxml` writes it")]
    NotADomain(String),
    /// The domain has what a package cannot have.
    #[error("the domain cannot be published as it is:{}", lines(.0))]
    Refused(Vec<Remark>),
    /// What is to be left out is not among what is refused.
    #[error("nothing that is refused lies at {0}")]
    NotRefused(DropPath),
}

fn lines(remarks: &[Remark]) -> String {
    remarks.iter().fold(String::new(), |mut text, remark| {
        let _ = write!(text, "\n  {remark}");
        text
    })
}
