//! Walking all frames of a version, some leaves at a time, and asking which of them are here.

use std::collections::HashSet;
use std::sync::Arc;

use serde::Serialize;
use tokio::task::JoinSet;

use crate::limits::PULL_LEAVES;
use crate::tier::{Wanted, Why};
use crate::{Error, Image, Package, Store};

/// Walks the leaves of one image.
pub(super) struct Walk<'a> {
    image: &'a Arc<Image>,
    next: u32,
}

/// How much of an image is in the disk tier, as stored: its chunks and the nodes of its index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageSurvey {
    /// The image's name.
    pub name: String,
    /// Bytes of all its frames; one that it has several times counts once.
    pub bytes: u64,
    /// Bytes of those that are in the disk tier.
    pub resident_bytes: u64,
}

impl<'a> Walk<'a> {
    pub(super) const fn new(image: &'a Arc<Image>) -> Self {
        Self { image, next: 0 }
    }

    /// The frames of the next leaves, in no order and some of them several times; nothing at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Wanted>>, Error> {
        let end = self.image.leaves().min(self.next.saturating_add(PULL_LEAVES));
        if self.next >= end {
            return Ok(None);
        }
        let mut under_way = JoinSet::new();
        for leaf in self.next..end {
            let image = Arc::clone(self.image);
            under_way.spawn(async move { image.frames(leaf, Why::Background).await });
        }
        self.next = end;
        let mut frames = Vec::new();
        while let Some(leaf) = under_way.join_next().await {
            frames.extend(leaf.map_err(|_| Error::Closing)??);
        }
        Ok(Some(frames))
    }
}

impl Store {
    /// How much of each image of a package the disk tier has; fetches the nodes of the index that are missing.
    ///
    /// # Errors
    /// [`Error`] when the index cannot be had.
    pub async fn survey(&self, package: &Package) -> Result<Vec<ImageSurvey>, Error> {
        let mut surveys = Vec::new();
        for image in package.images() {
            let mut survey = ImageSurvey { name: image.name().to_owned(), bytes: 0, resident_bytes: 0 };
            let mut seen = HashSet::new();
            let mut walk = Walk::new(image);
            while let Some(frames) = walk.next().await? {
                for frame in frames {
                    if seen.insert(frame.digest) {
                        let bytes = u64::from(frame.place.stored_len);
                        survey.bytes += bytes;
                        let is_here = self.disk().is_some_and(|disk| disk.contains(&frame.digest));
                        survey.resident_bytes += if is_here { bytes } else { 0 };
                    }
                }
            }
            surveys.push(survey);
        }
        Ok(surveys)
    }
}
