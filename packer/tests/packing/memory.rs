//! Saved VMs: from a migration stream or a libvirt save file to images that say the same.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use vmnetx_format::machine::Machine;
use vmnetx_format::migration::{
    Block, Compression, Configuration, DeviceState, PAGE_BYTES, Page, PageAt, Precopy, SaveFile, StreamReader,
    StreamWriter,
};
use vmnetx_format::{Accelerator, DEVICE_STATE_IMAGE};
use vmnetx_pack::{
    BuildOptions, BuildReport, Error, ExportOptions, MemoryError, MemoryFile, Output, Reader, Silent, build, export,
};
use vmnetx_store::failure::{Class, Told};

use crate::support::{Scene, machine, noise};

const RAM_MIB: usize = 48;
const RAM_BYTES: usize = RAM_MIB << 20;
const ROM_BYTES: usize = 256 << 10;

/// A page of a stream: its block, its number, its bytes or zeros.
type Sent<'a> = (usize, usize, Option<&'a [u8]>);

/// What libvirt saves beside such a stream.
const DOMAIN: &str = "<domain type='qemu'><name>vm</name><memory unit='MiB'>48</memory><devices>
    <disk type='file' device='disk'><source file='/srv/vm.img'/><target dev='vda' bus='virtio'/></disk></devices></domain>";

/// A device state of one section.
fn device_state() -> Vec<u8> {
    let mut bytes = vec![4, 0, 0, 0, 9, 5];
    bytes.extend(b"timer");
    bytes.extend([0, 0, 0, 0, 0, 0, 0, 2]);
    bytes.extend([0xa5; 5000]);
    bytes.extend([0x7e, 0, 0, 0, 9, 0, 6]);
    let description = br#"{"page_size":4096,"devices":[{"name":"timer","instance_id":0}]}"#;
    bytes.extend((description.len() as u32).to_be_bytes());
    bytes.extend(description);
    bytes
}

fn stream(machine: &str, ram_bytes: usize, pages: &[Sent<'_>]) -> Vec<u8> {
    let blocks = vec![Block::new("pc.ram", ram_bytes as u64), Block::new("/rom@etc/acpi/tables", ROM_BYTES as u64)];
    let mut out = Vec::new();
    let mut writer = StreamWriter::<Precopy>::start(&Configuration::new(machine), blocks, &mut out).unwrap();
    for &(block, page, bytes) in pages {
        let at = PageAt { block, offset_bytes: (page * PAGE_BYTES) as u64 };
        match bytes {
            Some(bytes) => writer.page(at, bytes.try_into().unwrap(), &mut out).unwrap(),
            None => writer.zero_page(at, &mut out).unwrap(),
        }
    }
    writer.finish(&DeviceState::decode(device_state()).unwrap(), &mut out);
    out
}

fn small_machine() -> Machine {
    Machine { memory_mib: (RAM_MIB as u64).try_into().unwrap(), ..machine() }
}

fn options(scene: &Scene, file: PathBuf) -> BuildOptions {
    let disk = scene.image("disk", &noise(1, 3 << 20));
    let memory = MemoryFile { file, accelerator: Some(Accelerator::Tcg), qemu: Some("7.2.22".to_owned()) };
    BuildOptions { memory: Some(memory), machine: Some(small_machine()), ..scene.options("vm", &disk) }
}

fn publish(scene: &Scene, saved: &[u8]) -> Result<BuildReport, Error> {
    let file = scene.image("saved", saved);
    build(&options(scene, file), &Silent)
}

/// The bytes of an image of the published version.
fn image(scene: &Scene, name: &str) -> Vec<u8> {
    fs::read(scene.export(scene.link("vm").to_str().unwrap(), name)).unwrap()
}

#[test]
fn a_saved_vm_is_published_as_its_images() {
    let scene = Scene::new();
    let data = noise(7, 64 * PAGE_BYTES);
    let page = |number: usize| &data[number * PAGE_BYTES..(number + 1) * PAGE_BYTES];
    let zeros = [0; PAGE_BYTES];
    // Out of sequence, again with other bytes, zero after it was not, and zeros that were sent as data.
    let pages = [
        (0, 100, Some(page(0))),
        (1, 3, Some(page(1))),
        (0, 101, Some(page(2))),
        (0, 5, Some(page(3))),
        (0, 12_287, Some(page(4))),
        (0, 100, Some(page(5))),
        (0, 101, None),
        (0, 6, Some(&zeros[..])),
        (0, 7, None),
    ];
    let report = publish(&scene, &stream("pc-i440fx-7.2", RAM_BYTES, &pages)).unwrap();
    let memory = report.memory.unwrap();
    assert_eq!(memory.ram_bytes, (RAM_BYTES + ROM_BYTES) as u64);
    assert_eq!(memory.device_state_bytes, device_state().len() as u64);
    let ram = image(&scene, "ram:pc.ram");
    let mut expected = vec![0; RAM_BYTES];
    for (number, of) in [(100, 5), (5, 3), (12_287, 4)] {
        expected[number * PAGE_BYTES..][..PAGE_BYTES].copy_from_slice(page(of));
    }
    assert!(ram == expected);
    assert!(image(&scene, "ram:/rom@etc/acpi/tables")[3 * PAGE_BYTES..4 * PAGE_BYTES] == *page(1));
    assert_eq!(image(&scene, DEVICE_STATE_IMAGE), device_state());
    let version = scene.repository().link(&"vm".parse().unwrap()).unwrap().unwrap().link.current;
    let manifest = scene.repository().manifest(&version).unwrap();
    let names: Vec<_> = manifest.images().map(|image| image.name.into_owned()).collect();
    assert_eq!(names, ["disk0", "ram:pc.ram", "ram:/rom@etc/acpi/tables", "vm:device-state"]);
    let memory = manifest.memory.unwrap();
    assert_eq!((memory.accelerator, memory.qemu.as_deref()), (Some(Accelerator::Tcg), Some("7.2.22")));
    scene.verify_whole();
    assert_eq!(fs::read_dir(scene.repo().join("tmp")).unwrap().count(), 0, "scratch files are gone");
}

#[test]
fn a_saved_vm_is_exported_as_a_stream_that_says_the_same() {
    let scene = Scene::new();
    let page = noise(7, PAGE_BYTES);
    let pages: Vec<Sent<'_>> = vec![(0, 3, Some(&page)), (0, 700, Some(&page)), (1, 2, Some(&page)), (1, 3, None)];
    publish(&scene, &stream("pc-i440fx-7.2", RAM_BYTES, &pages)).unwrap();
    let before = ["ram:pc.ram", "ram:/rom@etc/acpi/tables", DEVICE_STATE_IMAGE].map(|name| image(&scene, name));
    let exported = image(&scene, "vm:stream");

    let mut reader = StreamReader::new(exported.as_slice()).unwrap();
    let mut pages_of = [0, 0];
    while let Some(Page::Zero(at) | Page::Data(at, _)) = reader.next_page().unwrap() {
        pages_of[at.block] += 1;
    }
    // A QEMU that has just started has zeros in its main memory alone.
    assert_eq!(pages_of, [2, ROM_BYTES / PAGE_BYTES]);

    // Published again it is the same.
    let again = Scene::new();
    publish(&again, &exported).unwrap();
    let after = ["ram:pc.ram", "ram:/rom@etc/acpi/tables", DEVICE_STATE_IMAGE].map(|name| image(&again, name));
    assert!(before == after);
    let options = ExportOptions {
        link: scene.link("vm").to_str().unwrap().parse().unwrap(),
        disk: "vm:strem".to_owned(),
        out: Output::File { path: scene.path("none"), force: false },
        reader: Reader::default(),
    };
    let error = export(&options, &Silent).unwrap_err().to_string();
    assert!(error.ends_with("vm:device-state, vm:stream"), "{error}");
}

#[test]
fn what_libvirt_saved_is_read_however_it_is_compressed() {
    let data = noise(8, 40 * PAGE_BYTES);
    let pages: Vec<_> = data.chunks(PAGE_BYTES).enumerate().map(|(at, page)| (0, at + 9, Some(page))).collect();
    let plain = stream("pc-i440fx-7.2", RAM_BYTES, &pages);
    let versions = [Compression::Raw, Compression::Gzip, Compression::Bzip2, Compression::Xz, Compression::Zstd];
    let mut published = Vec::new();
    for compression in versions {
        let scene = Scene::new();
        let head = SaveFile { xml: DOMAIN.to_owned(), cookie: None, was_running: true, compression };
        let mut saved = head.encode().unwrap();
        saved.extend(compressed(&scene, compression, &plain));
        let report = publish(&scene, &saved).unwrap();
        published.push(report.version);
        assert!(image(&scene, "ram:pc.ram")[9 * PAGE_BYTES..][..data.len()] == data);
    }
    assert!(published.iter().all(|version| *version == published[0]), "{published:?}");
}

#[test]
fn of_what_libvirt_saved_the_hardware_is_kept_and_nothing_of_the_host() {
    let saved = |xml: &str| {
        let (xml, compression) = (xml.to_owned(), Compression::Raw);
        let mut saved = SaveFile { xml, cookie: None, was_running: true, compression }.encode().unwrap();
        saved.extend(stream("pc-i440fx-7.2", RAM_BYTES, &[]));
        saved
    };
    let scene = Scene::new();
    let genid = "<genid>43dc0cf8-809b-4adb-9bea-a9abb5f3d90e</genid><memory";
    publish(&scene, &saved(&DOMAIN.replace("<memory", genid))).unwrap();
    let version = scene.repository().link(&"vm".parse().unwrap()).unwrap().unwrap().link.current;
    let memory = scene.repository().manifest(&version).unwrap().memory.unwrap();
    let disk = "<disk type='file' device='disk'><target dev='vda' bus='virtio'/></disk>";
    let kept = format!("<domain type='qemu'><genid/><memory unit='MiB'>48</memory><devices>{disk}</devices></domain>");
    assert_eq!(memory.libvirt, Some(kept));

    let refused = |xml: &str, said: &str| {
        let scene = Scene::new();
        let error = publish(&scene, &saved(xml)).unwrap_err();
        assert_eq!(error.class(), Class::Usage);
        let Error::Memory { reason: MemoryError::Hardware(reason), .. } = &error else { panic!("{error:?}") };
        assert!(reason.to_string().contains(said), "{reason}");
    };
    let with = |device: &str| DOMAIN.replace("</devices>", &format!("{device}</devices>"));
    refused(&with("<tpm model='tpm-crb'/>"), "/domain/devices/tpm: ");
    refused(&with("<disk type='file'><target dev='vdb' bus='virtio'/></disk>"), "2 disks, and the package 1");
    refused("<network/>", "no domain");
}

/// Bytes as the program makes them that libvirt runs.
fn compressed(scene: &Scene, compression: Compression, bytes: &[u8]) -> Vec<u8> {
    if compression == Compression::Raw {
        return bytes.to_owned();
    }
    let input = fs::File::open(scene.image("plain", bytes)).unwrap();
    let output = Command::new(compression.name()).arg("-c").stdin(input).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success());
    output.stdout
}

#[test]
fn a_saved_vm_may_come_through_a_pipe() {
    let scene = Scene::new();
    let bytes = noise(9, PAGE_BYTES);
    let saved = stream("pc-i440fx-7.2", RAM_BYTES, &[(0, 1, Some(&bytes))]);
    let disk = scene.image("disk", &noise(1, 1 << 20));
    let mut command = scene.program();
    command.arg("build").arg(scene.repo()).args(["vm", "--memory", "-", "--disk"]).arg(&disk);
    command.arg("--machine").arg(scene.image("machine.toml", small_machine().to_toml().as_bytes()));
    let said = command.write_stdin(saved).assert().success();
    let said = String::from_utf8(said.get_output().stdout.clone()).unwrap();
    assert!(said.contains("memory    50.6 MB of RAM, 4.1 kB of it not zero"), "{said}");
    assert!(image(&scene, "ram:pc.ram")[PAGE_BYTES..2 * PAGE_BYTES] == bytes);
}

#[test]
fn what_is_not_the_described_machine_is_refused() {
    type IsIt = fn(&MemoryError) -> bool;
    let cases: [(Vec<u8>, IsIt, Class); 5] = [
        (stream("pc-q35-7.2", RAM_BYTES, &[]), |error| matches!(error, MemoryError::Machine { .. }), Class::Usage),
        (stream("pc-i440fx-7.2", RAM_BYTES / 2, &[]), |error| matches!(error, MemoryError::Ram { .. }), Class::Usage),
        (b"QFI\xfb is no stream".to_vec(), |error| matches!(error, MemoryError::Stream(_)), Class::Failure),
        (b"LibvirtQemudSave".to_vec(), |error| matches!(error, MemoryError::SaveFile(_)), Class::Failure),
        (Vec::new(), |error| matches!(error, MemoryError::Stream(_)), Class::Failure),
    ];
    for (saved, is_it, class) in cases {
        let scene = Scene::new();
        let error = publish(&scene, &saved).unwrap_err();
        assert_eq!(error.class(), class, "{error}");
        assert!(matches!(&error, Error::Memory { reason, .. } if is_it(reason)), "{error:?}");
        assert!(scene.repository().link(&"vm".parse().unwrap()).unwrap().is_none(), "nothing is published");
    }
}

#[test]
fn a_compressed_file_that_is_cut_off_is_refused() {
    let scene = Scene::new();
    let bytes = noise(10, 300 * PAGE_BYTES);
    let pages: Vec<_> = bytes.chunks(PAGE_BYTES).enumerate().map(|(at, page)| (0, at, Some(page))).collect();
    let head = SaveFile { xml: DOMAIN.to_owned(), cookie: None, was_running: true, compression: Compression::Gzip };
    let mut saved = head.encode().unwrap();
    let stream = compressed(&scene, Compression::Gzip, &stream("pc-i440fx-7.2", RAM_BYTES, &pages));
    saved.extend(&stream[..stream.len() / 2]);
    let error = publish(&scene, &saved).unwrap_err();
    assert!(matches!(&error, Error::Memory { reason: MemoryError::Decompressor { .. }, .. }), "{error:?}");
}
