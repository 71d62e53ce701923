//! The choice between KVM and TCG: by trying, not by believing.
//!
//! A `/dev/kvm` that opens does not show that guests run: on some virtual hosts they start and then spin for ever. So KVM
//! is taken only when the host's CPU says that it virtualises and a tiny guest has come to its end. That guest is a
//! firmware of our own that turns on paging and 64-bit mode, counts down, and ends QEMU with a code of its choice.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;

use super::command::SANDBOX;
use super::error::Error;
use super::limits::KVM_PROBE_DEADLINE;
use super::process::{Process, Programs};
use super::run_dir::RunDir;

/// The accelerator that the user asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Accel {
    /// KVM where it can run a guest, else TCG.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// TCG: the guest's instructions are translated. Works everywhere, slower.
    Tcg,
}

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accelerator {
    Kvm,
    Tcg,
}

/// Why KVM cannot run a guest here.
#[derive(Debug, thiserror::Error)]
pub enum KvmObstacle {
    /// The device cannot be opened.
    #[error("/dev/kvm does not open: {0}")]
    Device(io::Error),
    /// The processor does not say that it can.
    #[error("/proc/cpuinfo lists neither vmx nor svm")]
    Processor,
    /// The trial guest did not come to its end.
    #[error("a trial guest {0}")]
    Trial(String),
}

impl Accelerator {
    /// QEMU's name for it.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    /// The format's word for it.
    pub(crate) const fn recorded(self) -> vmnetx_format::Accelerator {
        match self {
            Self::Kvm => vmnetx_format::Accelerator::Kvm,
            Self::Tcg => vmnetx_format::Accelerator::Tcg,
        }
    }
}

/// Decides, and tells the log why.
pub(super) async fn choose(asked: Accel, programs: &Programs, run_dir: &RunDir) -> Result<Accelerator, Error> {
    if asked == Accel::Tcg {
        tracing::debug!("TCG, as asked");
        return Ok(Accelerator::Tcg);
    }
    match (kvm_obstacle(programs, run_dir).await?, asked) {
        (None, _) => {
            tracing::info!("KVM runs the guest: a trial guest came to its end");
            Ok(Accelerator::Kvm)
        }
        (Some(why), Accel::Kvm) => Err(Error::NoKvm(why)),
        (Some(why), _) => {
            tracing::info!("TCG runs the guest, slower than KVM, because {why}");
            Ok(Accelerator::Tcg)
        }
    }
}

/// Why KVM cannot run a guest here, if so: whether [`Accel::Auto`] takes it.
pub(crate) async fn kvm_obstacle(programs: &Programs, run_dir: &RunDir) -> Result<Option<KvmObstacle>, Error> {
    if let Err(error) = fs::File::options().read(true).write(true).open("/dev/kvm") {
        return Ok(Some(KvmObstacle::Device(error)));
    }
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").map_err(|source| Error::io("read /proc/cpuinfo", source))?;
    if !virtualises(&cpuinfo) {
        return Ok(Some(KvmObstacle::Processor));
    }
    Ok(probe(Accelerator::Kvm, programs, run_dir).await?.map(KvmObstacle::Trial))
}

/// Whether the flags of the host's CPU say that it can run guests.
fn virtualises(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().filter_map(|line| line.strip_prefix("flags")?.trim_start().strip_prefix(':'));
    flags.flat_map(str::split_whitespace).any(|flag| matches!(flag, "vmx" | "svm"))
}

/// Runs the trial guest; says what went wrong, if anything did.
async fn probe(accelerator: Accelerator, programs: &Programs, run_dir: &RunDir) -> Result<Option<String>, Error> {
    let file = run_dir.file("trial-firmware");
    fs::write(&file, firmware()).map_err(|source| Error::io(format!("write {}", file.display()), source))?;
    let mut guest = Process::spawn(programs, &programs.qemu, &probe_arguments(accelerator, &file), Vec::new()).await?;
    let status = guest.exited_within(KVM_PROBE_DEADLINE).await?;
    if status.is_none() {
        guest.kill().await?;
    }
    Ok(match status {
        Some(status) if status.code() == Some(TRIAL_EXIT_CODE) => None,
        Some(status) => Some(format!("failed ({status}): {}", guest.words())),
        None => Some(format!("made no progress in {} s", KVM_PROBE_DEADLINE.as_secs())),
    })
}

fn probe_arguments(accelerator: Accelerator, firmware: &Path) -> Vec<OsString> {
    let machine = format!("pc,accel={}", accelerator.as_str());
    let options =
        ["-nodefaults", "-no-user-config", "-sandbox", SANDBOX, "-machine", &machine, "-cpu", "qemu64", "-m", "4"];
    let mut arguments: Vec<OsString> = options.map(Into::into).into();
    arguments.extend(["-display", "none", "-device", "isa-debug-exit,iobase=0x501,iosize=1", "-bios"].map(Into::into));
    arguments.push(firmware.into());
    arguments
}

/// What the trial guest ends QEMU with: `isa-debug-exit` makes `(value << 1) | 1` of the value written to its port.
const TRIAL_EXIT_CODE: i32 = (TRIAL_VALUE as i32) << 1 | 1;
const TRIAL_VALUE: u8 = 0x2a;

/// Bytes of the firmware: the last segment below 1 MiB, which also stands at the top of the address space.
const FIRMWARE_BYTES: usize = 64 << 10;

/// Where a CPU begins, as an offset in the firmware.
const RESET_VECTOR: usize = FIRMWARE_BYTES - 16;

/// At the reset vector: `jmp f000:0000`, the beginning of [`TRIAL_CODE`].
const RESET_CODE: [u8; 5] = [0xea, 0x00, 0x00, 0x00, 0xf0];

#[rustfmt::skip]
const TRIAL_CODE: [u8; 0x86] = [
    // 16-bit code at f000:0000.
    0xfa,                                               // cli
    0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0,                 // xor ax, ax; mov ds, ax; mov es, ax
    // Page tables at 0x1000, 0x2000 and 0x3000 that map the first 2 MiB onto themselves.
    0xbf, 0x00, 0x10, 0xb9, 0x00, 0x18, 0xfc, 0xf3, 0xab, // mov di, 0x1000; mov cx, 0x1800; cld; rep stosw
    0xc7, 0x06, 0x00, 0x10, 0x03, 0x20,                 // mov word [0x1000], 0x2003
    0xc7, 0x06, 0x00, 0x20, 0x03, 0x30,                 // mov word [0x2000], 0x3003
    0xc7, 0x06, 0x00, 0x30, 0x83, 0x00,                 // mov word [0x3000], 0x0083
    0x2e, 0x66, 0x0f, 0x01, 0x16, 0x80, 0x00,           // lgdt cs:[0x80]
    0x66, 0xb8, 0x20, 0x00, 0x00, 0x00, 0x0f, 0x22, 0xe0, // mov eax, 0x20; mov cr4, eax       (PAE)
    0x66, 0xb8, 0x00, 0x10, 0x00, 0x00, 0x0f, 0x22, 0xd8, // mov eax, 0x1000; mov cr3, eax
    0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32,     // mov ecx, 0xc0000080; rdmsr           (EFER)
    0x66, 0x0d, 0x00, 0x01, 0x00, 0x00, 0x0f, 0x30,     // or eax, 0x100; wrmsr                 (LME)
    0x66, 0xb8, 0x01, 0x00, 0x00, 0x80, 0x0f, 0x22, 0xc0, // mov eax, 0x80000001; mov cr0, eax (PG, PE)
    0x66, 0xea, 0x5c, 0x00, 0x0f, 0x00, 0x08, 0x00,     // jmp 0x0008:0x000f005c
    // 64-bit code at 0xf005c.
    0xb9, 0xa0, 0x86, 0x01, 0x00, 0xff, 0xc9, 0x75, 0xfc, // mov ecx, 100000; l: dec ecx; jnz l
    0x66, 0xba, 0x01, 0x05, 0xb0, TRIAL_VALUE, 0xee,    // mov dx, 0x501; mov al, VALUE; out dx, al
    0xf4, 0xeb, 0xfd,                                   // l: hlt; jmp l
    0x90,
    // The descriptor table at 0xf0070: none, 64-bit code; then what `lgdt` loads: its limit and its address.
    0, 0, 0, 0, 0, 0, 0, 0,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x9a, 0x20, 0x00,
    0x0f, 0x00, 0x70, 0x00, 0x0f, 0x00,
];

fn firmware() -> Vec<u8> {
    let mut image = vec![0; FIRMWARE_BYTES];
    image[..TRIAL_CODE.len()].copy_from_slice(&TRIAL_CODE);
    image[RESET_VECTOR..][..RESET_CODE.len()].copy_from_slice(&RESET_CODE);
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting() -> (Programs, tempfile::TempDir, RunDir) {
        let base = tempfile::tempdir().unwrap();
        let run_dir = RunDir::create(base.path()).unwrap();
        (Programs::find(Path::new("qemu-system-x86_64")).unwrap(), base, run_dir)
    }

    #[tokio::test]
    async fn the_trial_guest_comes_to_its_end_where_guests_run() {
        let (programs, _base, run_dir) = setting();
        assert_eq!(probe(Accelerator::Tcg, &programs, &run_dir).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_trial_guest_that_fails_or_hangs_is_reported() {
        let (mut programs, base, run_dir) = setting();
        programs.qemu = base.path().join("qemu");
        for (script, complaint) in
            [("echo no such device >&2; exit 1", "no such device"), ("exec sleep 100", "no progress")]
        {
            fs::write(&programs.qemu, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&programs.qemu, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            let why = probe(Accelerator::Tcg, &programs, &run_dir).await.unwrap().unwrap();
            assert!(why.contains(complaint), "{why}");
        }
    }

    #[tokio::test]
    async fn auto_takes_tcg_exactly_where_kvm_has_an_obstacle() {
        let (programs, _base, run_dir) = setting();
        let obstacle = kvm_obstacle(&programs, &run_dir).await.unwrap();
        let expected = if obstacle.is_some() { Accelerator::Tcg } else { Accelerator::Kvm };
        assert_eq!(choose(Accel::Auto, &programs, &run_dir).await.unwrap(), expected);
        assert_eq!(choose(Accel::Tcg, &programs, &run_dir).await.unwrap(), Accelerator::Tcg);
        match choose(Accel::Kvm, &programs, &run_dir).await {
            Ok(accelerator) => assert!(accelerator == Accelerator::Kvm && obstacle.is_none()),
            Err(Error::NoKvm(why)) => assert_eq!(Some(why.to_string()), obstacle.map(|obstacle| obstacle.to_string())),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_cpu_that_virtualises_says_so() {
        let line =
            |flags: &str| format!("processor\t: 0\nmodel name\t: vmx svm\nflags\t\t: fpu {flags} sse\nbugs\t\t: svm\n");
        assert!(virtualises(&line("vmx")) && virtualises(&line("svm")));
        assert!(!virtualises(&line("hypervisor vmx_like")) && !virtualises(""));
    }
}
