//! Hostile packages and servers against every program that reads packages: refused with the right exit code and an error
//! that names the object and the field; within bounds of memory and time; with nothing written and no terminal steered.
//!
//! `docs/threat-model.md` says what is promised; each promise names its test here.

mod evil;
mod link;
mod manifest;
mod orders;
mod packs;
mod readers;
mod saved;
mod server;
mod tree;

use evil::{Evil, Stage};
use readers::{Reader, Scratch, says};

/// Looks at a package with each of these programs, which must refuse it as damaged and say so in these words.
fn refused_by(readers: &[Reader], evil: &Evil, case: &str, words: &[&str]) {
    let scratch = Scratch::new();
    for &reader in readers {
        let told = scratch.run(reader, evil.link().to_str().unwrap());
        assert_eq!(told.code, Some(4), "{reader:?} of {case}: {}", told.text);
        assert!(says(&told.text, words), "{reader:?} of {case} does not say {words:?}: {}", told.text);
    }
}

/// A table of cases: in the JSON of a stage, the first piece of text is replaced by the second, and the error must hold
/// the third.
fn all_refused(stage: Stage, cases: &[(&str, &str, &str)]) {
    let object = if stage == Stage::Manifest { "manifests/" } else { "vm.vmnetx" };
    for (from, to, says) in cases {
        let evil = Evil::replaced(stage, from, to);
        refused_by(&Reader::ALL, &evil, &format!("{from} -> {:.200}", to), &[object, says]);
    }
}

#[test]
fn what_is_not_hostile_is_read() {
    let evil = Evil::good();
    for reader in [Reader::Info, Reader::Verify, Reader::Export] {
        let scratch = Scratch::new();
        let told = scratch.run(reader, evil.link().to_str().unwrap());
        assert_eq!(told.code, Some(0), "{reader:?}: {}", told.text);
    }
}
