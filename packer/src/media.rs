//! What web servers have to say of a repository's files: which of them may be cached for how long, and what they are.

use vmnetx_format::{Digest, LINK_SUFFIX, Name, layout_path, manifest_path, order_path, pack_path};

/// What a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Media {
    Link,
    Manifest,
    /// A pack, a layout object or an order.
    Binary,
}

impl Media {
    /// What lies at a path of a URL, or nothing if no object can: hidden files, `tmp/` and strangers are not served.
    pub(crate) fn of_path(path: &str) -> Option<Self> {
        let path = path.strip_prefix('/')?;
        let Some((folder, _)) = path.split_once('/') else {
            let name: Result<Name, _> = path.strip_suffix(LINK_SUFFIX)?.parse();
            return name.ok().map(|_| Self::Link);
        };
        let (stem, _) = path.rsplit_once('/')?.1.split_once('.')?;
        let digest: Digest = stem.parse().ok()?;
        match folder {
            "manifests" => (path == manifest_path(&digest)).then_some(Self::Manifest),
            "layouts" => (path == layout_path(&digest)).then_some(Self::Binary),
            "packs" => (path == pack_path(&digest)).then_some(Self::Binary),
            "orders" => (path == order_path(&digest)).then_some(Self::Binary),
            _ => None,
        }
    }

    /// Objects never change, because their digest names them; a link may change at any time.
    pub(crate) const fn caching(self) -> &'static str {
        match self {
            Self::Link => "no-cache",
            Self::Manifest | Self::Binary => "public, max-age=31536000, immutable",
        }
    }

    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::Link => "application/x-vmnetx-link+json",
            Self::Manifest => "application/json",
            Self::Binary => "application/octet-stream",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_objects_and_links_are_known() {
        let digest = Digest::of(b"x");
        for (path, object) in [
            (manifest_path(&digest), Media::Manifest),
            (layout_path(&digest), Media::Binary),
            (pack_path(&digest), Media::Binary),
            (order_path(&digest), Media::Binary),
            ("debian.vmnetx".to_owned(), Media::Link),
        ] {
            assert_eq!(Media::of_path(&format!("/{path}")), Some(object), "{path}");
            assert_eq!(Media::of_path(&path), None, "{path}");
            assert_eq!(Media::of_path(&format!("//{path}")), None, "{path}");
            assert_eq!(Media::of_path(&format!("/../{path}")), None, "{path}");
        }
        let pack = pack_path(&digest);
        let file = pack.rsplit('/').next().unwrap();
        for path in [
            "/".to_owned(),
            "/.lock".to_owned(),
            "/.vmnetx".to_owned(),
            "/index.html".to_owned(),
            "/tmp/1-1".to_owned(),
            format!("/packs/{file}"),
            format!("/packs/zz/{file}"),
            format!("/packs/../{pack}"),
            format!("/orders/../{pack}"),
            format!("/orders/{digest}.layout"),
            format!("/tmp/{digest}.pack"),
            format!("/manifests/{digest}.json.bak"),
            format!("/manifests/{}.json", digest.to_string().to_uppercase()),
        ] {
            assert_eq!(Media::of_path(&path), None, "{path}");
        }
    }
}
