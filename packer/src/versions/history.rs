//! What becomes of a link's versions when one is published, rolled back to, pinned or given up.

use vmnetx_format::limits::RETAINED_MAX;
use vmnetx_format::{Digest, Link, Version};

use crate::Error;

/// The versions of a link whose next current version is `current`: those before it are retained, newest first.
///
/// The same manifest is the same version: published again, perhaps with another layout, it takes its own place, and it is
/// never retained beside itself. Its date and whether it is pinned belong to it, whatever its layout.
pub(crate) fn succeed(old: &Link, mut current: Version) -> (Version, Vec<Version>) {
    if let Some(twin) = old.version(&current.manifest) {
        current.published_unix_s = twin.published_unix_s;
        current.pinned = twin.pinned;
    }
    let others = old.versions().filter(|version| version.manifest != current.manifest).cloned().collect();
    (current, bounded(others))
}

/// Makes a version that the link names current.
pub(super) fn roll_back(link: &Link, to: &Digest) -> Link {
    let Some(version) = link.version(to).cloned() else { return link.clone() };
    let (current, retained) = succeed(link, version);
    Link { current, retained, ..link.clone() }
}

/// Pins and unpins versions.
pub(super) fn pin(mut link: Link, pin: &[Digest], unpin: &[Digest]) -> Link {
    for version in std::iter::once(&mut link.current).chain(&mut link.retained) {
        version.pinned = (version.pinned || pin.contains(&version.manifest)) && !unpin.contains(&version.manifest);
    }
    link
}

/// Gives versions up.
pub(super) fn give_up(mut link: Link, versions: &[Digest]) -> Result<Link, Error> {
    for digest in versions {
        if *digest == link.current.manifest {
            return Err(Error::Usage("the current version cannot be given up: roll back to another one first".into()));
        }
        if link.version(digest).is_some_and(|version| version.pinned) {
            return Err(Error::Usage(format!("version {digest} is pinned: --unpin it to give it up")));
        }
    }
    link.retained.retain(|version| !versions.contains(&version.manifest));
    Ok(link)
}

/// Retains the newest `count` versions, and those that are pinned.
pub(crate) fn keep(mut link: Link, count: usize) -> Link {
    let mut left = count;
    link.retained.retain(|version| {
        if version.pinned {
            return true;
        }
        let stays = left > 0;
        left = left.saturating_sub(1);
        stays
    });
    link
}

/// As many of the versions as a link can name: the oldest go that are not pinned, and pinned ones only if all are.
fn bounded(mut retained: Vec<Version>) -> Vec<Version> {
    while retained.len() > RETAINED_MAX {
        let last = retained.len() - 1;
        let oldest = retained.iter().rposition(|version| !version.pinned).unwrap_or(last);
        retained.remove(oldest);
    }
    retained
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(number: u32) -> Version {
        Version {
            manifest: Digest::of(&number.to_le_bytes()),
            manifest_bytes: 1,
            layout: Digest::of(b"layout"),
            layout_bytes: 1,
            orders: Vec::new(),
            published_unix_s: number.into(),
            pinned: false,
        }
    }

    /// A link whose current version is the first of `numbers`.
    fn link(numbers: &[u32]) -> Link {
        let mut versions = numbers.iter().copied().map(version);
        Link {
            name: "vm".parse().unwrap(),
            title: None,
            serial: 9,
            repositories: Vec::new(),
            current: versions.next().unwrap(),
            retained: versions.collect(),
        }
    }

    fn numbers(link: &Link) -> Vec<u64> {
        link.versions().map(|version| version.published_unix_s).collect()
    }

    fn next(old: &Link, number: u32) -> Link {
        let (current, retained) = succeed(old, version(number));
        Link { current, retained, ..old.clone() }
    }

    #[test]
    fn the_versions_before_are_retained_and_none_is_there_twice() {
        assert_eq!(numbers(&next(&link(&[3, 2, 1]), 4)), [4, 3, 2, 1]);
        assert_eq!(numbers(&next(&link(&[3, 2, 1]), 2)), [2, 3, 1]);
        assert_eq!(numbers(&next(&link(&[3, 2, 1]), 3)), [3, 2, 1]);
        assert_eq!(numbers(&roll_back(&link(&[3, 2, 1]), &version(1).manifest)), [1, 3, 2]);
    }

    #[test]
    fn what_belongs_to_a_version_stays_with_it() {
        let mut old = link(&[2, 1]);
        old.retained[0].pinned = true;
        old.retained[0].orders = vec![Digest::of(b"order")];
        let again = Version { published_unix_s: 77, layout: Digest::of(b"new"), ..version(1) };
        let (current, _) = succeed(&old, again);
        // Its orders are laid out with it, so whoever publishes it says which they are.
        assert!(current.pinned && current.orders.is_empty() && current.published_unix_s == 1);
        assert_eq!(roll_back(&old, &version(1).manifest).current.orders, [Digest::of(b"order")]);
        assert_eq!(current.layout, Digest::of(b"new"));
    }

    #[test]
    fn the_newest_and_the_pinned_are_kept() {
        let pinned = pin(link(&[9, 5, 4, 3, 2, 1]), &[version(2).manifest], &[]);
        assert_eq!(numbers(&keep(pinned.clone(), 2)), [9, 5, 4, 2]);
        assert_eq!(numbers(&keep(pinned.clone(), 0)), [9, 2]);
        assert_eq!(numbers(&keep(pinned.clone(), 10)), [9, 5, 4, 3, 2, 1]);
        let unpinned = pin(pinned, &[], &[version(2).manifest]);
        assert_eq!(numbers(&keep(unpinned, 0)), [9]);
    }

    #[test]
    fn neither_the_current_nor_a_pinned_version_is_given_up() {
        let old = pin(link(&[3, 2, 1]), &[version(2).manifest], &[]);
        assert_eq!(numbers(&give_up(old.clone(), &[version(1).manifest]).unwrap()), [3, 2]);
        assert!(give_up(old.clone(), &[version(2).manifest]).is_err());
        assert!(give_up(old, &[version(3).manifest]).is_err());
    }

    #[test]
    fn a_link_never_names_more_versions_than_it_may() {
        let all: Vec<u32> = (0..=RETAINED_MAX as u32).rev().collect();
        let mut full = link(&all);
        let oldest = full.retained.len() - 1;
        full.retained[oldest].pinned = true;
        let after = next(&full, 5000);
        assert_eq!(after.retained.len(), RETAINED_MAX);
        assert!(after.retained.iter().any(|version| version.pinned), "the pinned one outlives newer ones");
        assert!(after.version(&version(1).manifest).is_none());
    }
}
