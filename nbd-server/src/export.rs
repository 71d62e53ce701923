//! Exports: images under the names by which NBD clients ask for them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use vmnetx_nbd_proto::handshake::{self, BlockSize, ExportInfo, Listed};
use vmnetx_nbd_proto::wire::{BASE_ALLOCATION, RESIDENCY, TransmissionFlags};
use vmnetx_store::Image;

use crate::ExportStats;

/// An image that is served under a name.
#[derive(Debug)]
pub struct Export {
    name: String,
    description: String,
    image: Arc<Image>,
    pub(crate) counters: ExportCounters,
}

/// What clients did with an export.
#[derive(Debug, Default)]
pub(crate) struct ExportCounters {
    pub(crate) connections: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) inline: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) failed: AtomicU64,
}

/// The exports of a server. The first one is also the default export, whose name is empty. Clones share their list.
#[derive(Debug, Clone, Default)]
pub struct Exports(Arc<RwLock<Vec<Arc<Export>>>>);

impl Export {
    /// Serves `image` as `name`; clients that list exports see the description.
    #[must_use]
    pub fn new(name: impl Into<String>, description: impl Into<String>, image: Arc<Image>) -> Self {
        let counters = ExportCounters::default();
        Self { name: name.into(), description: description.into(), image, counters }
    }

    /// The name by which clients ask for it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The image that is served.
    #[must_use]
    pub fn image(&self) -> &Arc<Image> {
        &self.image
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> ExportStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ExportStats {
            name: self.name.clone(),
            size_bytes: self.image.size_bytes(),
            connections: load(&self.counters.connections),
            requests: load(&self.counters.requests),
            inline_reads: load(&self.counters.inline),
            refused: load(&self.counters.refused),
            failed: load(&self.counters.failed),
            counts: self.image.counters().counts(),
        }
    }

    fn info(&self) -> ExportInfo {
        ExportInfo {
            name: self.name.clone(),
            description: self.description.clone(),
            size_bytes: self.image.size_bytes(),
            // Nothing is ever written, so every connection sees the same bytes and a flush is done at once.
            flags: TransmissionFlags::READ_ONLY
                | TransmissionFlags::SEND_FLUSH
                | TransmissionFlags::SEND_DF
                | TransmissionFlags::SEND_CACHE
                | TransmissionFlags::CAN_MULTI_CONN,
            block_size: BlockSize::default(),
            contexts: vec![BASE_ALLOCATION.to_owned(), RESIDENCY.to_owned()],
        }
    }
}

impl Exports {
    /// Starts with none.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an export.
    pub fn add(&self, export: Export) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).push(Arc::new(export));
    }

    /// All exports, in the order in which they were added.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Export>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl handshake::Exports for Exports {
    type Handle = Arc<Export>;

    fn find(&self, name: &str) -> Option<(ExportInfo, Arc<Export>)> {
        let export = self.all().into_iter().find(|export| name.is_empty() || export.name == name)?;
        Some((export.info(), export))
    }

    fn list(&self) -> Vec<Listed> {
        let listed =
            |export: &Arc<Export>| Listed { name: export.name.clone(), description: export.description.clone() };
        self.all().iter().map(listed).collect()
    }
}
