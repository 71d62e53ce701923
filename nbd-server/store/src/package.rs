//! A package that was opened: its link, its manifest, and its images ready to be read.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;
use url::Url;
use vmnetx_format::limits::LINK_BYTES_MAX;
use vmnetx_format::{
    Digest, Envelope, LayoutObject, Link, LinkError, Manifest, PublicKey, Purpose, Record, RecordError, RecordTouch,
    Touch, Version, layout_path, link_path, manifest_path,
};

use crate::cache::Ahead;
use crate::location::{Location, Place};
use crate::offline::OfflineOrigin;
use crate::order::OrderReplay;
use crate::origin::{
    DirOrigin, HttpOrigin, MirrorState, Mirrors, Origin, OriginCounts, OriginTier, Retry, leads_inside, shown,
};
use crate::trust::{self, Asked, Believed, Notice};
use crate::{Error, Image, OrderCounts, Recorder, Store};

/// One version of a package. It stays that version, whatever is published meanwhile.
#[derive(Debug)]
pub struct Package {
    link: Envelope,
    /// Where the link was read, if that was on the web.
    url: Option<Url>,
    version: Version,
    manifest: Manifest,
    /// Disks, RAM blocks, device state.
    images: Vec<Arc<Image>>,
    origin: Arc<OriginTier>,
    mirrors: Arc<Mirrors>,
    head_bytes: u64,
    believed: Believed,
    order: Option<OrderReplay>,
    purpose: Purpose,
    _ahead: Option<Ahead>,
}

/// A link as it was read, to be believed, and where its repository is.
struct Head {
    link: Envelope,
    url: Option<Url>,
    believed: Believed,
    mirrors: Arc<Mirrors>,
    /// Where the link is, to be shown.
    shown: String,
    bytes: u64,
}

impl Package {
    /// Opens the version that `location` names; in order, its recorded order of the purpose is replayed.
    pub(crate) async fn open(
        store: &Store,
        location: &Location,
        purpose: Purpose,
        in_order: bool,
    ) -> Result<Self, Error> {
        let ahead = if in_order { ahead_of_link(store, location).await } else { None };
        let Head { link, url, believed, mirrors, shown, bytes: link_bytes } = read_link(store, location).await?;
        let version = match &location.version {
            None => link.link.current.clone(),
            Some(wanted) => {
                let version = link.link.version(wanted).cloned();
                version.ok_or(Error::NoVersion { link: shown, version: *wanted })?
            }
        };
        let ahead = match ahead {
            Some(ahead) if ahead.manifest == version.manifest => Some(ahead),
            _ if in_order => store.ahead(version.manifest),
            _ => None,
        };
        let (tiers, frames) = store.tiers(Arc::clone(&mirrors));
        let origin: Arc<dyn Origin> = Arc::<Mirrors>::clone(&mirrors);
        let plan = Arc::default();
        // At once, for what it brings is what the guest will wait for.
        let (tell_purpose, told_purpose) = oneshot::channel();
        let replay = || OrderReplay::start(store, &origin, &version, tiers.clone(), (Arc::clone(&plan), told_purpose));
        let order = in_order.then(replay);
        let (manifest_path, layout_path) = (manifest_path(&version.manifest), layout_path(&version.layout));
        let (manifest_object, layout_object) = tokio::try_join!(
            verified(store, &*origin, &manifest_path, version.manifest_bytes, version.manifest),
            verified(store, &*origin, &layout_path, version.layout_bytes, version.layout),
        )?;
        let at = || origin.locate(&manifest_path);
        let manifest =
            Manifest::decode(&manifest_object.bytes).map_err(|source| Error::Manifest { object: at(), source })?;
        let images = manifest.shapes().map_err(|source| Error::Manifest { object: at(), source })?;
        let layout = LayoutObject::decode(&layout_object.bytes, &images)
            .map_err(|source| Error::Tree { image: link.link.name.to_string(), source })?;
        // Without memory there is nothing to resume. A replay that does not listen has ended.
        let purpose = if manifest.memory.is_some() { purpose } else { Purpose::Boot };
        let _ = tell_purpose.send(purpose);
        let parts = manifest.images().zip(images).zip(layout.images);
        let images = parts.map(|((image, (geometry, _)), roots)| {
            Arc::new(Image::new(image.name.into_owned(), geometry, roots, tiers.clone(), Arc::clone(&plan)))
        });
        let images: Vec<Arc<Image>> = images.collect();
        if let Some(touched) = in_order.then(|| store.touched(version.manifest)).flatten() {
            images.iter().for_each(|image| image.note_touches(&touched));
        }
        let head_bytes = link_bytes + manifest_object.origin_bytes + layout_object.origin_bytes;
        let origin = frames;
        Ok(Self {
            link,
            url,
            version,
            manifest,
            images,
            origin,
            mirrors,
            head_bytes,
            believed,
            order,
            purpose,
            _ahead: ahead,
        })
    }

    /// What the link said when the package was opened.
    #[must_use]
    pub const fn link(&self) -> &Link {
        &self.link.link
    }

    /// The link with its signature.
    pub(crate) const fn envelope(&self) -> &Envelope {
        &self.link
    }

    /// Whether it is read over the network, or would be if it were not offline.
    #[must_use]
    pub const fn is_remote(&self) -> bool {
        self.url.is_some()
    }

    /// Where the link was read, if that was on the web.
    pub(crate) const fn url(&self) -> Option<&Url> {
        self.url.as_ref()
    }

    /// The places of its repository.
    pub(crate) const fn repository(&self) -> &Arc<Mirrors> {
        &self.mirrors
    }

    /// The tier that fetches from there.
    pub(crate) const fn origin(&self) -> &Arc<OriginTier> {
        &self.origin
    }

    /// The key that signed the link.
    #[must_use]
    pub const fn signer(&self) -> Option<PublicKey> {
        self.believed.signer
    }

    /// What the user should know about the link.
    #[must_use]
    pub fn notices(&self) -> &[Notice] {
        &self.believed.notices
    }

    /// The version that was opened.
    #[must_use]
    pub const fn version(&self) -> &Version {
        &self.version
    }

    /// The version's manifest.
    #[must_use]
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The disks, in the manifest's order.
    #[must_use]
    pub fn disks(&self) -> &[Arc<Image>] {
        // Disks come first.
        self.images.get(..self.manifest.disks.len()).unwrap_or_default()
    }

    /// All images: the disks, then RAM blocks and the device state, as [`Manifest::images`] has them.
    #[must_use]
    pub fn images(&self) -> &[Arc<Image>] {
        &self.images
    }

    /// The image of this name.
    #[must_use]
    pub fn image(&self, name: &str) -> Option<&Arc<Image>> {
        self.images.iter().find(|image| image.name() == name)
    }

    /// Records the first touches of its images from now on, as of what it was opened for.
    #[must_use]
    pub fn record(&self) -> Arc<Recorder> {
        let names = self.images.iter().map(|image| image.name().to_owned()).collect();
        let recorder = Arc::new(Recorder::new(self.version.manifest, self.purpose, names));
        self.images.iter().enumerate().for_each(|(number, image)| image.record(&recorder, number));
        recorder
    }

    /// What came of its recorded order until now; nothing if it has none or none is replayed.
    #[must_use]
    pub fn order_counts(&self) -> Option<OrderCounts> {
        self.order.as_ref().and_then(OrderReplay::counts)
    }

    /// What its recorded order says is touched, in its sequence; waits until the order is here. No touches if there is none, or
    /// it is not replayed.
    ///
    /// # Errors
    /// [`RecordError`] for more touches than a record may have, of several orders.
    pub async fn ordered(&self) -> Result<Record, RecordError> {
        let touches = match &self.order {
            Some(order) => order.touches().await,
            None => Vec::new(),
        };
        let touch = |Touch { image, first_block, blocks, after_ms }: Touch| {
            let image = self.images.get(image as usize)?.name().to_owned();
            Some(RecordTouch { after_ms, image, first_block, blocks })
        };
        let mut touches: Vec<_> = touches.into_iter().filter_map(touch).collect();
        // One order after the other: times begin anew.
        let mut latest = 0;
        touches.iter_mut().for_each(|touch| {
            latest = latest.max(touch.after_ms);
            touch.after_ms = latest;
        });
        Record::new(self.version.manifest, self.purpose, touches)
    }

    /// What its origin was asked for and gave so far.
    #[must_use]
    pub fn origin_counts(&self) -> OriginCounts {
        self.origin.counts()
    }

    /// How the places of its repository do, in the link's order.
    #[must_use]
    pub fn mirrors(&self) -> Vec<MirrorState> {
        self.mirrors.states()
    }

    /// Requests for ranges of packs so far.
    #[must_use]
    pub fn origin_requests(&self) -> u64 {
        self.origin.requests()
    }

    /// Bytes of bodies that came from the origin so far: link, manifest, layout and ranges of packs.
    #[must_use]
    pub fn origin_bytes(&self) -> u64 {
        self.head_bytes + self.origin.bytes()
    }
}

/// Reads the link, decides whether it is to be believed, and finds the origin of its repository.
async fn read_link(store: &Store, location: &Location) -> Result<Head, Error> {
    match &location.place {
        Place::Url(url) => read_remote_link(store, url, location, None).await,
        Place::Path(path) => {
            let (dir, name) = split(path)?;
            let origin = DirOrigin::new(dir);
            let bytes = origin.object(&name, LINK_BYTES_MAX).await?;
            let shown = path.display().to_string();
            let envelope = decode(&bytes, &shown)?;
            if let Some(repository) = envelope.link.repositories.first() {
                // A link file that was handed on is only a pointer: the canonical one knows the current version.
                trust::check_pointer(path, &envelope)?;
                let url = repository.join(&link_path(&envelope.link.name));
                let url = url.map_err(|error| Error::network(repository.as_str(), error))?;
                return read_remote_link(store, &url, location, Some(&envelope)).await;
            }
            let signer = store.trust().check_file(path, &envelope)?;
            let believed = Believed { signer, notices: Vec::new() };
            Ok(Head {
                link: envelope,
                url: None,
                believed,
                mirrors: Arc::new(Mirrors::new(Arc::new(origin), [])),
                shown,
                bytes: bytes.len() as u64,
            })
        }
    }
}

async fn read_remote_link(
    store: &Store,
    url: &Url,
    location: &Location,
    pointer: Option<&Envelope>,
) -> Result<Head, Error> {
    let bytes = if store.is_offline() { kept_link(store, url).await? } else { fetch_link(store, url).await? };
    let envelope = decode(&bytes, &shown(url))?;
    // Before anything that the link names is asked for.
    check_reach(&envelope.link, url).map_err(|source| Error::Link { object: shown(url), source })?;
    let asked = Asked { url, pinned: location.version.is_some(), pointer };
    let believed = store.trust().check(&asked, &envelope).await?;
    if let (Some(links), false) = (store.links(), store.is_offline()) {
        let (links, name, bytes) = (Arc::clone(links), kept_name(url), bytes.clone());
        // Nobody has to wait for it.
        tokio::task::spawn_blocking(move || links.put(&name, &bytes));
    }
    let at = |base: &Url| -> Arc<dyn Origin> {
        match store.is_offline() {
            true => Arc::new(OfflineOrigin::new(base.clone())),
            false => Arc::new(HttpOrigin::new(store.client().clone(), base.clone())),
        }
    };
    let mirrors = match envelope.link.repositories.split_first() {
        Some((first, others)) => Mirrors::new(at(first), others.iter().map(at)),
        None => Mirrors::new(at(&url.join(".").map_err(|error| Error::network(url.as_str(), error))?), []),
    };
    let mirrors = Arc::new(mirrors);
    let shown = shown(url);
    Ok(Head { link: envelope, url: Some(url.clone()), believed, mirrors, shown, bytes: bytes.len() as u64 })
}

/// The name under which a link is kept that was read at `url`.
pub(crate) fn kept_name(url: &Url) -> Digest {
    Digest::of(url.as_str().as_bytes())
}

/// The link as it was last read at `url`; it is judged like any other.
async fn kept_link(store: &Store, url: &Url) -> Result<Bytes, Error> {
    let offline = || Error::Offline { object: shown(url) };
    let (links, name) = (Arc::clone(store.links().ok_or_else(offline)?), kept_name(url));
    let kept = tokio::task::spawn_blocking(move || links.get(&name, LINK_BYTES_MAX)).await;
    let kept = kept.ok().flatten().filter(|bytes| Envelope::decode(bytes).is_ok());
    kept.map(Bytes::from).ok_or_else(offline)
}

/// Starts to bring into memory what was read first of the version that the link named the last time, while the link is
/// asked for. Whatever the link says then: what is brought has its digest, and nothing is given out before.
async fn ahead_of_link(store: &Store, location: &Location) -> Option<Ahead> {
    let Place::Url(url) = &location.place else { return None };
    let manifest = match location.version {
        Some(version) => version,
        None => Envelope::decode(&kept_link(store, url).await.ok()?).ok()?.link.current.manifest,
    };
    store.ahead(manifest)
}

/// Where a link may lead depends on where it was read from.
fn check_reach(link: &Link, url: &Url) -> Result<(), LinkError> {
    match link.repositories.iter().find(|repository| leads_inside(url, repository)) {
        Some(inside) => {
            let reason = format!("has {}, which is in a private network, and the link is not", shown(inside));
            Err(LinkError::Field { field: "repositories", reason })
        }
        None => Ok(()),
    }
}

async fn fetch_link(store: &Store, url: &Url) -> Result<Bytes, Error> {
    let mut retry = Retry::for_as_long_as(store.retry_for());
    loop {
        match store.client().whole(url, LINK_BYTES_MAX).await {
            Err(error) if error.is_transient() && retry.pause().await => {}
            result => return result,
        }
    }
}

/// An immutable object of a repository.
pub(crate) struct Object {
    pub(crate) bytes: Bytes,
    /// Bytes of it that came from the origin: all or none.
    pub(crate) origin_bytes: u64,
}

/// Reads an immutable object, from the cache directory or else from the origin, and compares its digest.
pub(crate) async fn verified(
    store: &Store,
    origin: &dyn Origin,
    path: &str,
    max_bytes: u64,
    expected: Digest,
) -> Result<Object, Error> {
    let fetch = async || {
        let bytes = fetched(store, origin, path, max_bytes, expected).await?;
        Ok(Object { origin_bytes: bytes.len() as u64, bytes })
    };
    let Some(objects) = store.objects() else { return fetch().await };
    let cache = Arc::clone(objects);
    let kept = tokio::task::spawn_blocking(move || cache.get(&expected, max_bytes)).await;
    // An error is a panic, which has told of itself.
    if let Ok(Some(bytes)) = kept {
        return Ok(Object { bytes, origin_bytes: 0 });
    }
    let object = fetch().await?;
    let (cache, copy) = (Arc::clone(objects), object.bytes.clone());
    // Nobody has to wait for it.
    tokio::task::spawn_blocking(move || cache.put(&expected, &copy));
    Ok(object)
}

async fn fetched(
    store: &Store,
    origin: &dyn Origin,
    path: &str,
    max_bytes: u64,
    expected: Digest,
) -> Result<Bytes, Error> {
    let mut retry = Retry::for_as_long_as(store.retry_for());
    let mut damaged = 0;
    loop {
        let result = origin.object(path, max_bytes).await.and_then(|bytes| {
            let right = Digest::of(&bytes) == expected;
            if right { Ok(bytes) } else { Err(Error::Digest { object: origin.locate(path), expected }) }
        });
        let error = match result {
            Ok(bytes) => return Ok(bytes),
            Err(error) => error.of_object(),
        };
        if error.is_damage() {
            damaged += 1;
            origin.distrust(path, &error);
        }
        let again = error.is_transient() || (error.is_damage() && damaged < crate::limits::DAMAGED_TRIES_MAX);
        if !again || !retry.pause().await {
            return Err(error);
        }
    }
}

fn decode(bytes: &[u8], object: &str) -> Result<Envelope, Error> {
    Envelope::decode(bytes).map_err(|source| Error::Link { object: object.to_owned(), source })
}

fn split(path: &Path) -> Result<(&Path, String), Error> {
    let name = path.file_name().and_then(|name| name.to_str());
    let wrong = || Error::Location { text: path.display().to_string(), reason: "it is no path to a link file".into() };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((parent, name.ok_or_else(wrong)?.to_owned()))
}
