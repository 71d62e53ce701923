//! How an error is told to a user: its class, which is the program's exit code, its words and what can be done.

use std::error::Error;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

/// What kind of failure ended a program, or a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Anything that has no class of its own.
    Failure,
    /// The command line or a configuration file is wrong.
    Usage,
    /// Stored data is not what its digest or its signature says, or is damaged, or is not to be trusted.
    Integrity,
    /// A remote host cannot be reached or does not answer as it should.
    Network,
    /// This host lacks something: a program, a device, a permission, space.
    Host,
}

/// An error that a program can end with.
pub trait Told: Error {
    /// Its class.
    fn class(&self) -> Class;

    /// What the user can do about it, where the message does not say so.
    fn hint(&self) -> Option<String> {
        None
    }
}

impl Class {
    /// The exit code: 1, 2, 4, 5 or 6.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failure => 1,
            Self::Usage => 2,
            Self::Integrity => 4,
            Self::Network => 5,
            Self::Host => 6,
        }
    }

    /// The class of an error of the system on a file that the user named.
    #[must_use]
    pub fn of_io(error: &std::io::Error) -> Self {
        use std::io::ErrorKind as Kind;
        match error.kind() {
            Kind::PermissionDenied | Kind::StorageFull | Kind::ReadOnlyFilesystem | Kind::QuotaExceeded => Self::Host,
            Kind::FileTooLarge | Kind::OutOfMemory => Self::Host,
            _ => Self::Failure,
        }
    }
}

/// An error's message with those of its causes.
#[must_use]
pub fn describe(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let message = inner.to_string();
        // A transparent wrapper repeats its cause.
        if !text.ends_with(&message) {
            let _ = write!(text, ": {message}");
        }
        cause = inner.source();
    }
    text
}

/// What a program says when it ends with an error: the message with its causes, and on a second line the hint.
#[must_use]
pub fn tell(error: &dyn Told) -> String {
    let mut text = format!("error: {}", describe(error));
    if let Some(hint) = error.hint() {
        let _ = write!(text, "\nhint: {hint}");
    }
    text
}
