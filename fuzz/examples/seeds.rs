//! Writes the corpora that fuzzing starts from into `corpus/`: a few good inputs for each target, made by the encoders.
//!
//! `cargo run --manifest-path fuzz/Cargo.toml --example seeds`, after a change of the format or of a target's layout.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::BytesMut;
use vmnetx_format::machine::Machine;
use vmnetx_format::migration::{
    Block, Compression, Configuration, DeviceState, PAGE_BYTES, PageAt, Precopy, SaveFile, StreamWriter,
};
use vmnetx_format::{
    Accelerator, Chunker, Compressor, ContentInner, ContentLeaf, DeviceStateImage, Digest, Disk, Envelope, Kind,
    LayoutInner, LayoutLeaf, LayoutObject, Link, Manifest, Memory, NodePlace, Order, OrderFrame, PackBuilder, Place,
    Purpose, RamBlock, Record, RecordTouch, Roots, SecretKey, Touch, Trailer, Version,
};
use vmnetx_nbd_proto::handshake::{Config, ExportInfo, Exports, Handshake, Listed};
use vmnetx_nbd_proto::option::{InfoRequest, MetaRequest, OptionHeader};
use vmnetx_nbd_proto::reply::{self, Extent};
use vmnetx_nbd_proto::request::Request;
use vmnetx_nbd_proto::wire::{
    BASE_ALLOCATION, ChunkFlags, Command, CommandFlags, Cookie, ErrorCode, InfoType, OptionCode, RESIDENCY,
    StatusFlags, TransmissionFlags,
};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

const MACHINES: [&str; 2] = [
    "machine = \"pc-i440fx-7.2\"\nmemory_mib = 64\n[cpu]\nmodel = \"qemu64\"\n",
    "machine = \"pc-q35-7.2\"\nmemory_mib = 2048\nfirmware = \"bios\"\nvga = \"virtio\"\nserial = false\ntablet = true\n\
     vmgenid = true\nguest_agent = true\nrng = true\nclock = \"localtime\"\ndisk_bus = \"virtio\"\ncpu = { model = \"Nehalem\", count = 2 }\n\
     disks = [{ name = \"disk0\", bus = \"scsi\" }]\nnics = [{ model = \"e1000\", mac = \"52:54:00:00:00:01\" }]\n",
];

fn main() -> Result {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let put = |target: &str, name: &str, bytes: &[u8]| -> Result {
        let folder: PathBuf = corpus.join(target);
        fs::create_dir_all(&folder)?;
        Ok(fs::write(folder.join(name), bytes)?)
    };
    json(&put)?;
    text(&put)?;
    nodes(&put)?;
    frames(&put)?;
    orders(&put)?;
    publisher(&put)?;
    migration(&put)?;
    server(&put)?;
    client(&put)
}

/// What a publisher reads of others.
fn publisher(put: &impl Fn(&str, &str, &[u8]) -> Result) -> Result {
    let key = SecretKey::from_seed(&[7; SecretKey::SEED_BYTES]);
    put("keys", "secret", key.to_text().as_bytes())?;
    put("keys", "list", format!("# keys\n\n{}\n", key.public()).as_bytes())?;
    put("tombstones", "one", br#"{"vmnetx":0,"objects":{"packs/aa/aa.pack":1700000000}}"#)?;
    let small = br#"<domain type="kvm"><name>vm</name><memory unit="MiB">512</memory><vcpu>2</vcpu>
<os><type arch="x86_64" machine="pc-q35-6.2">hvm</type><boot dev="hd"/></os><features><acpi/></features>
<devices><disk type="file" device="disk"><driver name="qemu" type="qcow2"/><source file="/a.qcow2"/>
<target dev="vda" bus="virtio"/></disk><interface type="network"><mac address="52:54:00:00:00:01"/>
<model type="virtio"/></interface><tpm model="tpm-crb"/></devices></domain>"#;
    put("domain", "small", small)?;
    put("domain", "debian", include_bytes!("../../packer/tests/domains/debian-q35.xml"))?;
    // A qcow2 of version 3 over a raw file: magic, version, place and length of the name below, cluster bits, size.
    let mut qcow2 = [&[0][..], b"QFI\xfb\0\0\0\x03", &120_u64.to_be_bytes(), &4_u32.to_be_bytes()].concat();
    qcow2.extend(16_u32.to_be_bytes());
    qcow2.extend((1_u64 << 20).to_be_bytes());
    qcow2.resize(1 + 100, 0);
    qcow2.extend(104_u32.to_be_bytes());
    // The format of the file below, as an extension, and the end of those.
    qcow2.extend([0xe2, 0x79, 0x2a, 0xca, 0, 0, 0, 3, b'r', b'a', b'w', 0, 0, 0, 0, 0]);
    qcow2.extend(b"base");
    put("image_chain", "qcow2", &qcow2)?;
    let vmdk = b"\x03# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
                 RW 8 FLAT \"image-flat.vmdk\" 0\n";
    put("image_chain", "vmdk", vmdk)?;
    put("image_chain", "qed", b"\x02QED\0\0\0\x01\0\x04\0\0\0\x01\0\0\0")
}

/// What QEMU and libvirt write of a saved VM, and what a migration's target says.
fn migration(put: &impl Fn(&str, &str, &[u8]) -> Result) -> Result {
    // Two devices as QEMU writes them, the end, and the description of both.
    let mut tail = b"\x04\0\0\0\0\x05timer\0\0\0\0\0\0\0\x02ticks\x7e\0\0\0\0".to_vec();
    tail.extend(b"\x04\0\0\0\x03\x03cpu\0\0\0\x01\0\0\0\x0cregisters\x7e\0\0\0\x03\0\x06");
    let description =
        br#"{"page_size":4096,"devices":[{"name":"timer","instance_id":0},{"name":"cpu","instance_id":1}]}"#;
    tail.extend((description.len() as u32).to_be_bytes());
    tail.extend(description);
    let device_state = DeviceState::decode(tail)?;
    let page = PAGE_BYTES as u64;
    let blocks = vec![Block::new("pc.ram", 4 * page), Block::new("pc.bios", page)];
    let shared = Configuration { ignore_shared: true, uuid: Some([7; 16]), ..Configuration::new("pc-q35-7.2") };
    for (name, configuration) in [("plain", Configuration::new("pc-i440fx-7.2")), ("shared", shared)] {
        let mut out = Vec::new();
        let mut writer = StreamWriter::<Precopy>::start(&configuration, blocks.clone(), &mut out)?;
        writer.zero_page(PageAt { block: 0, offset_bytes: 0 }, &mut out)?;
        writer.page(PageAt { block: 0, offset_bytes: page }, &[1; PAGE_BYTES], &mut out)?;
        writer.end_section(&mut out);
        writer.zero_page(PageAt { block: 1, offset_bytes: 0 }, &mut out)?;
        writer.finish(&device_state, &mut out);
        put("migration_stream", name, &out)?;
    }
    let request =
        |kind: u8, name: &[u8]| [&[0, kind, 0, 12 + name.len() as u8][..], &[0; 8], &[0, 0, 16, 0], name].concat();
    let said = [b"\0\x02\0\x04\0\0\0\x01", &request(3, b"\x06pc.ram")[..], &request(4, b""), b"\0\x01\0\x04\0\0\0\0"];
    put("return_path", "whole", &said.concat())?;
    let cookie = Some("<qemusave/>".to_owned());
    let file = SaveFile { xml: "<domain/>".to_owned(), cookie, was_running: true, compression: Compression::Xz };
    // Without most of the room that libvirt leaves.
    put("libvirt_save", "cookie", &file.encode()?[..128])
}

fn orders(put: &impl Fn(&str, &str, &[u8]) -> Result) -> Result {
    let touch = |number: u32| Touch {
        image: number % 2,
        first_block: u64::from(number * 77 % 500),
        blocks: number + 1,
        after_ms: number * 9,
    };
    let frame = |number: u32| OrderFrame {
        digest: Digest::of(&number.to_le_bytes()),
        plain_len: 4096 * (number + 1),
        place: Place {
            pack: Digest::of(&[number as u8 / 3]),
            offset: u64::from(8 + number * 700),
            stored_len: 700 + number % 2,
        },
    };
    let order = Order::new(Purpose::Boot, (0..6).map(touch).collect(), (0..6).map(frame).collect())?;
    put("order", "boot", &order.encode())?;
    put("order", "empty", &Order::new(Purpose::Resume, Vec::new(), Vec::new())?.encode())?;
    let record = |shift: u32| {
        let touch = |number: u32| RecordTouch {
            after_ms: number * shift,
            image: format!("disk{}", number % 2),
            first_block: u64::from(number * 13 % 40 + shift),
            blocks: number % 7 + 1,
        };
        Ok::<_, Box<dyn Error>>(
            Record::new(Digest::of(b"manifest"), Purpose::Boot, (0..8).map(touch).collect())?.encode()?,
        )
    };
    put("record", "one", &record(1)?)?;
    put("record", "three", &[record(0)?, record(3)?, record(5)?].concat())
}

fn version() -> Version {
    Version {
        manifest: Digest::of(b"manifest"),
        manifest_bytes: 500,
        layout: Digest::of(b"layout"),
        layout_bytes: 9000,
        orders: vec![Digest::of(b"order")],
        published_unix_s: 1_700_000_000,
        pinned: false,
    }
}

fn json(put: &impl Fn(&str, &str, &[u8]) -> Result) -> Result {
    let link = Link {
        name: "debian".parse()?,
        title: Some("Debian 12".parse()?),
        serial: 3,
        repositories: vec!["https://vms.example.org/".parse()?],
        current: version(),
        retained: vec![version()],
    };
    let envelope = Envelope::unsigned(link)?;
    put("link", "whole", &envelope.encode())?;
    let signature = format!("{{\"key\":\"{}\",\"ed25519\":\"{}\"}}", "ab".repeat(32), "cd".repeat(64));
    let signed = String::from_utf8(envelope.encode())?.replace("}\n", &format!(",\"signature\":{signature}}}"));
    put("link", "signed", signed.as_bytes())?;
    put("link_text", "whole", envelope.text())?;
    for (number, machine) in MACHINES.iter().enumerate() {
        put("machine", &format!("machine{number}"), machine.as_bytes())?;
        let machine = Machine::from_toml(machine)?;
        put("machine", &format!("json{number}"), &serde_json::to_vec(&machine)?)?;
        let content = Digest::of(b"ci\0");
        let disk = Disk { name: "disk0".parse()?, size_bytes: 2 << 30, content, chunker: Chunker::DISK };
        let chunker = Chunker::DISK;
        let block = RamBlock { name: "pc.ram".to_owned(), size_bytes: machine.memory_mib.bytes(), content, chunker };
        let device_state = DeviceStateImage { size_bytes: 4096, content, chunker };
        let (accelerator, qemu) = (Some(Accelerator::Tcg), Some("7.2.22".to_owned()));
        let libvirt = Some("<domain type='qemu'><memory unit='KiB'>131072</memory></domain>".to_owned());
        let memory = Memory { blocks: vec![block], device_state, accelerator, qemu, libvirt };
        let boot = Manifest::new(machine.clone(), vec![disk.clone()], None)?;
        put("manifest", &format!("boot{number}"), &boot.encode())?;
        let saved = Manifest::new(machine, vec![disk], Some(memory))?.encode();
        put("manifest", &format!("saved{number}"), &saved)?;
    }
    Ok(())
}

fn text(put: &impl Fn(&str, &str, &[u8]) -> Result) -> Result {
    let digest = Digest::of(b"").to_string();
    let names = ["debian-12.1_x", "Ein schönes System, 1994", "pc-q35-10.0", "Skylake-Client-v3", "52:54:00:ab:cd:01"];
    for (number, name) in names.into_iter().chain([&*digest]).enumerate() {
        put("names", &format!("name{number}"), name.as_bytes())?;
    }
    let links = [
        format!("https://vms.example.org:8443/a/debian.vmnetx?q=1#b3={digest}"),
        "vmnetx+https://vms.example.org/debian.vmnetx".to_owned(),
        format!("repo/debian.vmnetx#b3={digest}"),
        "https://user:secret@[::1]/a.vmnetx".to_owned(),
    ];
    for (number, link) in links.iter().enumerate() {
        put("location", &format!("link{number}"), link.as_bytes())?;
    }
    let monitor = concat!(
        "{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\r\n{\"return\": {}, \"id\": 1}\r\n",
        "{\"timestamp\": {}, \"event\": \"STOP\"}\r\n{\"return\": {\"status\": \"io-error\"}, \"id\": 2}\r\n",
        "{\"event\": \"BLOCK_IO_ERROR\", \"data\": {\"node-name\": \"overlay0\", \"operation\": \"write\", ",
        "\"nospace\": true, \"reason\": \"No space left\"}}\r\n",
        "{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": \"guest-shutdown\"}}\r\n",
    );
    put("qmp", "session", monitor.as_bytes())?;
    let refused = monitor.replace("\"return\": {\"status\": \"io-error\"}", "\"error\": {\"desc\": \"not now\"}");
    put("qmp", "refused", refused.as_bytes())
}

fn nodes(put: &impl Fn(&str, &str, &[u8]) -> Result) -> Result {
    let mut leaf = ContentLeaf::default();
    let mut places = Vec::new();
    for number in 0..6_u32 {
        let digest = Digest::of(&number.to_le_bytes());
        leaf.push(number * 40, 1 + number, digest)?;
        let pack = Digest::of(&[number as u8 / 4]);
        places.push(Place { pack, offset: 8 + u64::from(number) * 5000, stored_len: 3000 });
    }
    let mut inner = ContentInner::default();
    let mut children = Vec::new();
    for number in [0, 1, 7, 60] {
        let layout = Digest::of(&[number as u8]);
        inner.push(number, layout)?;
        children.push(NodePlace {
            pack: Digest::of(b"pack"),
            offset: 8 + u64::from(number) * 1000,
            content_stored_len: 300,
            content_plain_len: 400,
            layout_stored_len: 200,
            layout_plain_len: 500,
            layout,
        });
    }
    let layout_inner = LayoutInner::new(children);
    let span = |blocks: u16, node: Vec<u8>| [&blocks.to_le_bytes()[..], &node].concat();
    put("content_nodes", "leaf", &span(4096, leaf.encode()))?;
    put("content_nodes", "inner", &span(512, inner.encode()))?;
    put("layout_nodes", "leaf", &LayoutLeaf::new(places).encode())?;
    put("layout_nodes", "inner", &layout_inner.encode())?;
    let size = (1_u64 << 30).to_le_bytes();
    let content = inner.encode();
    let parts = [&size[..], &(content.len() as u16).to_le_bytes(), &content, &layout_inner.encode()].concat();
    put("layout_object", "roots", &parts)?;
    let empty = Roots { content: ContentInner::default(), layout: LayoutInner::default() };
    put("layout_object", "raw", &[&size[..], &LayoutObject { images: vec![empty] }.encode()].concat())
}

fn frames(put: &impl Fn(&str, &str, &[u8]) -> Result) -> Result {
    let text = b"line of a file that a compressor makes much smaller\n".repeat(80);
    let mut compressor = Compressor::new(3)?;
    let mut builder = PackBuilder::new();
    let mut pack = PackBuilder::HEADER.to_vec();
    let (mut segment, mut index) = (vec![0], Vec::new());
    for (kind, plain) in
        [(Kind::Chunk, &text[..4096]), (Kind::Content, b"cl\0"), (Kind::Layout, b"ll\0\0"), (Kind::Copy, b"copy")]
    {
        let stored = compressor.encode(plain)?;
        let length = (plain.len() as u32).to_le_bytes();
        put("frame", &format!("{kind:?}"), &[&length[..], &stored].concat())?;
        builder.push(kind, Digest::of(plain), plain.len() as u32, &stored);
        pack.extend_from_slice(&stored);
        segment.extend(b"VXC0");
        segment.extend((stored.len() as u32).to_le_bytes());
        segment.extend(length);
        segment.extend(Digest::of(plain).as_bytes());
        segment.extend([0; 8]);
        index.extend(Digest::of(plain).as_bytes());
        // Behind the byte that chooses.
        index.extend((segment.len() as u32 - 1).to_le_bytes());
        index.extend((stored.len() as u32).to_le_bytes());
        index.extend(length);
        segment.extend(stored);
    }
    let frames = pack.len() as u64;
    let (footer, _) = builder.finish()?;
    let trailer = Trailer::decode(footer.last_chunk().ok_or("no trailer")?, frames + footer.len() as u64)?;
    let stored = &footer[..trailer.stored_len as usize];
    let plain = vmnetx_format::decode_frame(stored, trailer.plain_len)?;
    pack.extend(&footer);
    put("catalogue", "pack", &pack)?;
    let plain_pack_len = frames + plain.len() as u64 + Trailer::BYTES as u64;
    put("catalogue", "plain", &[&plain_pack_len.to_le_bytes()[..], &plain].concat())?;
    // A bomb: 4 MiB of zeros that claim to be 4 KiB.
    put("frame", "bomb", &[&4096_u32.to_le_bytes()[..], &compressor.encode(&vec![0; 4 << 20])?].concat())?;
    put("disk_tier", "segment", &segment)?;
    // With an index of all records.
    segment[0] = 2 | (index.len() / 44 << 2) as u8;
    put("disk_tier", "sealed", &[segment, index].concat())
}

fn requests() -> Vec<u8> {
    let mut bytes = BytesMut::new();
    let commands =
        [Command::READ, Command::WRITE, Command::BLOCK_STATUS, Command::CACHE, Command::FLUSH, Command::DISC];
    for (cookie, command) in (1..).zip(commands) {
        let length = if matches!(command, Command::FLUSH | Command::DISC) { 0 } else { 64 };
        let flags = if command == Command::BLOCK_STATUS { CommandFlags::REQ_ONE } else { CommandFlags::EMPTY };
        Request { flags, command, cookie: Cookie(cookie), offset: 0, length }.encode(&mut bytes);
        if command == Command::WRITE {
            bytes.extend_from_slice(&[7; 64]);
        }
    }
    bytes.to_vec()
}

/// What a client says that lists, asks and goes.
fn options() -> Vec<u8> {
    let mut bytes = BytesMut::new();
    bytes.extend_from_slice(&3_u32.to_be_bytes());
    OptionHeader { code: OptionCode::LIST, length: 0 }.encode(&mut bytes);
    client_options(&mut bytes);
    bytes.to_vec()
}

/// What the client of this project says before it is in transmission.
fn client_options(bytes: &mut BytesMut) {
    OptionHeader { code: OptionCode::STRUCTURED_REPLY, length: 0 }.encode(bytes);
    MetaRequest { export: "disk0", queries: vec![BASE_ALLOCATION, RESIDENCY] }
        .encode(OptionCode::SET_META_CONTEXT, bytes);
    InfoRequest { export: "disk0", infos: vec![InfoType::BLOCK_SIZE, InfoType::NAME, InfoType::DESCRIPTION] }
        .encode(OptionCode::GO, bytes);
}

fn server(put: &impl Fn(&str, &str, &[u8]) -> Result) -> Result {
    put("nbd_requests", "all", &[vec![0], requests()].concat())?;
    for (choice, name) in [(0_u8, "plain"), (1, "tls_offered"), (2, "tls_required")] {
        put("nbd_handshake", name, &[vec![choice], options(), requests()].concat())?;
    }
    let mut old = vec![0];
    old.extend(1_u32.to_be_bytes());
    let mut name = BytesMut::new();
    OptionHeader { code: OptionCode::EXPORT_NAME, length: 5 }.encode(&mut name);
    old.extend(&name);
    old.extend(b"disk0");
    put("nbd_handshake", "export_name", &old)?;
    let mut tls = vec![1];
    tls.extend(3_u32.to_be_bytes());
    let mut start = BytesMut::new();
    OptionHeader { code: OptionCode::STARTTLS, length: 0 }.encode(&mut start);
    tls.extend(&start);
    put("nbd_handshake", "starttls", &tls)
}

/// One export for a server's side of the conversation.
struct OneDisk;

impl Exports for OneDisk {
    type Handle = ();

    fn find(&self, name: &str) -> Option<(ExportInfo, ())> {
        let info = ExportInfo {
            name: name.to_owned(),
            description: "a disk".to_owned(),
            size_bytes: 1 << 30,
            flags: TransmissionFlags::READ_ONLY
                | TransmissionFlags::SEND_FLUSH
                | TransmissionFlags::SEND_DF
                | TransmissionFlags::SEND_CACHE,
            block_size: Default::default(),
            contexts: vec![BASE_ALLOCATION.to_owned(), RESIDENCY.to_owned()],
        };
        Some((info, ()))
    }

    fn list(&self) -> Vec<Listed> {
        vec![Listed { name: "disk0".to_owned(), description: "a disk".to_owned() }]
    }
}

fn client(put: &impl Fn(&str, &str, &[u8]) -> Result) -> Result {
    let mut said = BytesMut::new();
    said.extend_from_slice(&3_u32.to_be_bytes());
    client_options(&mut said);
    let mut server = BytesMut::new();
    let _ = Handshake::new(Config::default()).advance(&mut said, &OneDisk, &mut server);
    let mut replies = BytesMut::new();
    let (done, more) = (ChunkFlags::DONE, ChunkFlags::EMPTY);
    reply::hole(&mut replies, Cookie(1), more, 4096, 4096);
    reply::data_header(&mut replies, Cookie(1), done, 8192, 4096);
    replies.extend_from_slice(&[5; 4096]);
    let extents = [Extent { length: 1 << 20, flags: StatusFlags::HOLE | StatusFlags::ZERO }];
    reply::block_status(&mut replies, Cookie(2), more, 1, &extents);
    let remote = [(4096, StatusFlags::REMOTE), (8192, StatusFlags::EMPTY)];
    let remote = remote.map(|(length, flags)| Extent { length, flags });
    reply::block_status(&mut replies, Cookie(2), done, 2, &remote);
    reply::error(&mut replies, Cookie(3), done, ErrorCode::IO, "no luck");
    // Structured, connecting: see the target.
    put("nbd_client", "structured", &[&[6][..], &server, &replies].concat())?;
    let mut simple = BytesMut::new();
    reply::simple(&mut simple, Cookie(1), None);
    simple.extend_from_slice(&[5; 8192]);
    reply::simple(&mut simple, Cookie(2), Some(ErrorCode::INVAL));
    put("nbd_client", "simple", &[&[7][..], &server, &simple].concat())?;
    let mut said = BytesMut::new();
    said.extend_from_slice(&3_u32.to_be_bytes());
    OptionHeader { code: OptionCode::LIST, length: 0 }.encode(&mut said);
    let mut listing = BytesMut::new();
    let _ = Handshake::new(Config::default()).advance(&mut said, &OneDisk, &mut listing);
    put("nbd_client", "list", &[&[0][..], &listing].concat())?;
    put("nbd_client", "info", &[&[3][..], &server].concat())?;
    put("nbd_replies", "option", &listing[18..])?;
    put("nbd_replies", "option_go", &server[18..])?;
    let mut chunks: Vec<BytesMut> = vec![BytesMut::new(); 5];
    reply::hole(&mut chunks[0], Cookie(1), done, 0, 512);
    reply::data_header(&mut chunks[1], Cookie(1), done, 0, 16);
    chunks[1].extend_from_slice(&[1; 16]);
    reply::block_status(&mut chunks[2], Cookie(1), done, 1, &extents);
    reply::error_at(&mut chunks[3], Cookie(1), done, ErrorCode::IO, "no luck", 77);
    reply::done(&mut chunks[4], Cookie(1));
    for (number, chunk) in chunks.iter().enumerate() {
        put("nbd_replies", &format!("chunk{number}"), chunk)?;
    }
    Ok(())
}
