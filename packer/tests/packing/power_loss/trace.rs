//! Records the system calls by which the real program changes a repository, with strace.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The system calls that change files or make changes durable.
const TRACED: &str = "openat,write,pwrite64,writev,pwritev,fsync,fdatasync,sync_file_range,syncfs,sync,rename,renameat,\
                      renameat2,unlink,unlinkat,mkdir,mkdirat,ftruncate,truncate,rmdir,link,linkat,symlink,symlinkat,\
                      copy_file_range,sendfile,splice,fallocate,mmap";

/// A change of a file system; paths are relative to the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Call {
    Create { path: PathBuf },
    MakeFolder { path: PathBuf },
    Append { path: PathBuf, data: Vec<u8> },
    Truncate { path: PathBuf, length: usize },
    Rename { from: PathBuf, to: PathBuf },
    Remove { path: PathBuf },
    Flush { path: PathBuf },
}

/// Runs `vmnetx-pack` with `words`, in which `REPO` stands for the repository, and gives its changes in the order in which
/// they were made.
pub(super) fn record(repository: &Path, words: &[&str]) -> Vec<Call> {
    let log = repository.with_extension("trace");
    let words = words.iter().map(|word| if *word == "REPO" { repository.to_str().unwrap() } else { word });
    let mut strace = Command::new("strace");
    strace.args(["-f", "-y", "-xx", "-s", "100000000", "-e", &format!("trace={TRACED}"), "-o"]).arg(&log);
    let output = strace.arg(assert_cmd::cargo::cargo_bin!("vmnetx-pack")).args(words).output().expect("strace");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = fs::read_to_string(&log).unwrap();
    lines(&text).iter().filter_map(|line| parse(line, repository)).collect()
}

/// The calls, each in one line, in the order in which they ended: those of other threads may lie between its two halves.
fn lines(text: &str) -> Vec<String> {
    let mut begun: HashMap<&str, &str> = HashMap::new();
    let mut whole = Vec::new();
    for line in text.lines() {
        let (thread, call) = line.split_once(' ').unwrap();
        let call = call.trim_start();
        if let Some(first) = call.strip_suffix(" <unfinished ...>") {
            begun.insert(thread, first);
        } else if let Some(resumed) = call.strip_prefix("<... ") {
            let rest = resumed.split_once(" resumed>").unwrap().1;
            whole.push(format!("{}{rest}", begun.remove(thread).unwrap()));
        } else if !call.starts_with("+++") && !call.starts_with("---") {
            whole.push(call.to_owned());
        }
    }
    whole
}

fn parse(line: &str, repository: &Path) -> Option<Call> {
    let (name, rest) = line.split_once('(').unwrap();
    let (arguments, result) = rest.rsplit_once(" = ").unwrap();
    if result.starts_with('-') || result.starts_with('?') {
        return None;
    }
    // What is quoted or in angle brackets is written in hexadecimal digits, so it holds none of these characters.
    let quoted: Vec<Vec<u8>> = arguments.split('"').skip(1).step_by(2).map(unescape).collect();
    let path = |bytes: &[u8]| {
        let path = PathBuf::from(std::str::from_utf8(bytes).unwrap());
        path.strip_prefix(repository).ok().map(Path::to_owned)
    };
    let opened = || {
        let named = arguments.split_once('<')?.1.split_once('>')?.0;
        path(&unescape(named))
    };
    let number = |position: usize| arguments.trim_end_matches(')').split(", ").nth(position).unwrap().parse().unwrap();
    Some(match name {
        "openat" if arguments.contains("O_CREAT") => {
            let path = path(&quoted[0])?;
            // Opening for reading and writing what is there changes nothing.
            Call::Create { path }
        }
        "openat" if arguments.contains("O_TRUNC") => Call::Truncate { path: path(&quoted[0])?, length: 0 },
        "openat" => return None,
        "write" => Call::Append { path: opened()?, data: quoted.into_iter().next().unwrap() },
        "ftruncate" => Call::Truncate { path: opened()?, length: number(1) },
        "fsync" => Call::Flush { path: opened()? },
        "rename" => Call::Rename { from: path(&quoted[0])?, to: path(&quoted[1])? },
        "unlink" => Call::Remove { path: path(&quoted[0])? },
        "mkdir" => Call::MakeFolder { path: path(&quoted[0])? },
        // Memory that is mapped for reading, and threads' stacks.
        "mmap" if !arguments.contains("MAP_SHARED") || !arguments.contains("PROT_WRITE") => return None,
        _ => panic!("a system call that this test does not know: {line:.300}"),
    })
}

fn unescape(text: &str) -> Vec<u8> {
    let byte = |digits: &str| u8::from_str_radix(digits, 16).unwrap();
    text.split("\\x").skip(1).map(byte).collect()
}
