//! A disk that forgets: what is in the memory of the system, and what of it would be there after power has failed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::trace::Call;

/// A repository as programs see it, and as it lies on the disk.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    folders: BTreeMap<PathBuf, Folder>,
    files: Vec<File>,
}

/// What of the data that was not flushed is on the disk all the same.
#[derive(Debug, Clone, Copy)]
pub(super) enum Chance {
    Nothing,
    Everything,
    /// Any part of it.
    Seed(u64),
}

#[derive(Debug, Clone, Default)]
struct Folder {
    /// The names in it.
    names: BTreeMap<String, Node>,
    /// The names that are on the disk for certain.
    flushed: BTreeMap<String, Node>,
    /// What was changed since it was flushed, in order: nothing for a name that was removed.
    changes: Vec<(String, Option<Node>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Folder,
    /// Its position among the files.
    File(usize),
}

#[derive(Debug, Clone, Default)]
struct File {
    data: Vec<u8>,
    flushed: Vec<u8>,
}

/// Decides by a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % sides
    }
}

impl Disk {
    /// A repository that has been on its disk for long.
    pub(super) fn of(repository: &Path) -> Self {
        let mut disk = Self::default();
        disk.take(repository, Path::new(""));
        disk
    }

    fn take(&mut self, repository: &Path, at: &Path) {
        let mut names = BTreeMap::new();
        for entry in fs::read_dir(repository.join(at)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = at.join(&name);
            let node = if entry.file_type().unwrap().is_dir() {
                self.take(repository, &path);
                Node::Folder
            } else {
                let data = fs::read(entry.path()).unwrap();
                self.files.push(File { flushed: data.clone(), data });
                Node::File(self.files.len() - 1)
            };
            names.insert(name, node);
        }
        let folder = Folder { flushed: names.clone(), names, changes: Vec::new() };
        self.folders.insert(at.to_owned(), folder);
    }

    /// Makes a change in memory, or flushes something.
    pub(super) fn apply(&mut self, call: &Call) {
        match call {
            Call::Create { path } => {
                if self.node(path).is_none() {
                    self.files.push(File::default());
                    self.enter(path, Some(Node::File(self.files.len() - 1)));
                }
            }
            Call::MakeFolder { path } => {
                self.folders.insert(path.clone(), Folder::default());
                self.enter(path, Some(Node::Folder));
            }
            Call::Append { path, data } => self.file(path).data.extend(data),
            Call::Truncate { path, length } => self.file(path).data.resize(*length, 0),
            Call::Rename { from, to } => {
                let node = self.node(from);
                assert!(matches!(node, Some(Node::File(_))), "{call:?}");
                self.enter(to, node);
                self.enter(from, None);
            }
            Call::Remove { path } => self.enter(path, None),
            Call::Flush { path } => match self.folders.get_mut(path) {
                Some(folder) => {
                    folder.flushed = folder.names.clone();
                    folder.changes.clear();
                }
                None => {
                    let file = self.file(path);
                    file.flushed = file.data.clone();
                }
            },
        }
    }

    /// Writes what a disk may hold after power has failed now.
    pub(super) fn write(&self, repository: &Path, chance: Chance) {
        let seed = if let Chance::Seed(seed) = chance { seed } else { 0 };
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        self.write_folder(repository, Path::new(""), chance, &mut dice);
    }

    fn write_folder(&self, repository: &Path, at: &Path, chance: Chance, dice: &mut Dice) {
        fs::create_dir(repository.join(at)).unwrap();
        let folder = &self.folders[at];
        let mut names = folder.flushed.clone();
        for (name, node) in &folder.changes {
            let there = match chance {
                Chance::Nothing => false,
                Chance::Everything => true,
                Chance::Seed(_) => dice.roll(2) == 0,
            };
            match node {
                _ if !there => {}
                Some(node) => drop(names.insert(name.clone(), *node)),
                None => drop(names.remove(name)),
            }
        }
        for (name, node) in names {
            let path = at.join(name);
            match node {
                Node::Folder => self.write_folder(repository, &path, chance, dice),
                Node::File(position) => {
                    fs::write(repository.join(path), self.files[position].kept(chance, dice)).unwrap();
                }
            }
        }
    }

    fn node(&self, path: &Path) -> Option<Node> {
        self.folders[path.parent().unwrap()].names.get(path.file_name().unwrap().to_str().unwrap()).copied()
    }

    fn file(&mut self, path: &Path) -> &mut File {
        match self.node(path) {
            Some(Node::File(position)) => &mut self.files[position],
            other => panic!("{} is {other:?}", path.display()),
        }
    }

    fn enter(&mut self, path: &Path, node: Option<Node>) {
        let folder = self.folders.get_mut(path.parent().unwrap()).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        match node {
            Some(node) => drop(folder.names.insert(name.clone(), node)),
            None => drop(folder.names.remove(&name)),
        }
        folder.changes.push((name, node));
    }
}

impl File {
    /// Data that was not flushed may be there, be missing, be there in part, or be zeros of the right length.
    fn kept(&self, chance: Chance, dice: &mut Dice) -> Vec<u8> {
        match chance {
            _ if self.data == self.flushed => self.data.clone(),
            Chance::Nothing => self.flushed.clone(),
            Chance::Everything => self.data.clone(),
            Chance::Seed(_) => match dice.roll(4) {
                0 => self.flushed.clone(),
                1 => self.data.clone(),
                2 => vec![0; self.data.len()],
                _ => self.data[..dice.roll(self.data.len() as u64 + 1) as usize].to_vec(),
            },
        }
    }
}
