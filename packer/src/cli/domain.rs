//! Domain XML on the command line: reading the file, showing the remarks, taking the disks.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use vmnetx_format::Name;
use vmnetx_format::machine::Machine;

use super::output::say;
use crate::domain::{Description, DiskFiles, DomainDisk, DomainError, RemarkKind, describe};
use crate::limits::DOMAIN_BYTES_MAX;
use crate::{DiskFile, DiskFormat, Error};

/// Reads the domain XML in the file `path`; `base` is the machine for what it does not say.
pub(super) fn read(path: &Path, base: Machine, files: DiskFiles) -> Result<Description, Error> {
    let mut xml = Vec::new();
    // One byte more than may be shows that there is more.
    let file = File::open(path).map_err(Error::file("read domain XML", path))?;
    file.take(DOMAIN_BYTES_MAX as u64 + 1).read_to_end(&mut xml).map_err(Error::file("read domain XML", path))?;
    describe(&xml, base, files).map_err(of_file(path))
}

/// Says of which file a domain is.
pub(super) fn of_file(path: &Path) -> impl Fn(DomainError) -> Error {
    move |source| Error::DomainFile { path: path.to_owned(), source }
}

/// Tells what is not as in the domain: a line for each kind and reason, with the paths that it is true of.
pub(super) fn tell(description: &Description, names: &[Name]) {
    for kind in [RemarkKind::Refused, RemarkKind::Changed, RemarkKind::Assumed, RemarkKind::Dropped] {
        let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
        let mut places = BTreeMap::new();
        for remark in description.of(kind) {
            let place = *places.entry(&*remark.why).or_insert_with(|| {
                groups.push((&remark.why, Vec::new()));
                groups.len() - 1
            });
            groups[place].1.push(&remark.path);
        }
        for (why, paths) in groups {
            say(&format!("{}  {}: {why}", kind.as_str(), paths.join(", ")));
        }
    }
    for (name, disk) in names.iter().zip(&description.disks) {
        let source = disk.source.as_ref().map_or_else(String::new, |source| {
            format!(", {} in the format {}", source.file.display(), source.format.escape_debug())
        });
        say(&format!("{name} is the domain's {}{source}", disk.target.escape_debug()));
    }
}

/// The file that holds a disk of the domain.
pub(super) fn own_file(name: Name, disk: &DomainDisk) -> Result<DiskFile, Error> {
    let Some(source) = &disk.source else {
        return Err(Error::Usage(format!("the domain's disk {:?} has no file", disk.target)));
    };
    match DiskFormat::from_name(&source.format) {
        Some(format) => Ok(DiskFile { name, file: source.file.clone(), format }),
        None => Err(Error::DomainDisk {
            target: disk.target.clone(),
            file: source.file.clone(),
            format: source.format.clone(),
        }),
    }
}
