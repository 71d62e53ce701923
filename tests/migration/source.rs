//! The source of a postcopy migration, as small as one can be: it answers requests, and pushes the rest when the guest has ticked.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use vmnetx_format::migration::{
    PAGE_BYTES, PageAt, PageRange, PostcopyActive, PostcopySetup, ReturnMessage, ReturnPath, StreamWriter, UrgentWriter,
};

use crate::guest::last_tick;
use crate::qemu::{DEADLINE, Serial, connect};
use crate::saved::Saved;

/// Every so many pages one is sent before the guest runs, so that the missing ones are many ranges.
const SENT_FIRST: usize = 50;

/// Resumes a guest to its end; how many pages it asked for before it ticked. With `preempt`, they have a connection of
/// their own.
pub(crate) fn serve(socket: &Path, saved: &Saved, serial: &Serial, preempt: bool) -> usize {
    let mut stream = connect(socket, || ());
    let second = preempt.then(|| connect(socket, || ()));
    let messages = listen(stream.try_clone().unwrap(), ReturnPath::new(saved.blocks.clone()));
    let answer = || messages.recv_timeout(DEADLINE).expect("QEMU answers");

    let mut out = Vec::new();
    let mut setup = StreamWriter::<PostcopySetup>::start(&saved.configuration, saved.blocks.clone(), &mut out).unwrap();
    stream.write_all(&out).unwrap();
    assert_eq!(answer(), ReturnMessage::Pong(StreamWriter::PING_STARTED));

    let mut missing: BTreeSet<PageAt> = saved.pages.keys().copied().collect();
    out.clear();
    for at in saved.pages.keys().step_by(SENT_FIRST) {
        saved.put(&mut setup, *at, &mut out);
        missing.remove(at);
    }
    let active = setup.run(ranges(&missing), &saved.device_state, &mut out).unwrap();
    stream.write_all(&out).unwrap();

    let urgent = second.map(|second| (second, active.urgent()));
    let mut source = Source { stream, urgent, saved, writer: active, missing };
    let requests = source.answer_until_tick(&messages, serial);
    source.push_rest(&messages);
    loop {
        match answer() {
            ReturnMessage::Shut(status) => break assert_eq!(status, 0, "the target has everything"),
            ReturnMessage::Pages(_) | ReturnMessage::Pong(_) => {}
        }
    }
    requests
}

struct Source<'a> {
    stream: UnixStream,
    urgent: Option<(UnixStream, UrgentWriter)>,
    saved: &'a Saved,
    writer: StreamWriter<PostcopyActive>,
    missing: BTreeSet<PageAt>,
}

impl Source<'_> {
    /// Sends only what is asked for, until the guest has gone on.
    fn answer_until_tick(&mut self, messages: &Receiver<ReturnMessage>, serial: &Serial) -> usize {
        let started = Instant::now();
        let (mut requests, mut loaded) = (0, false);
        while last_tick(&serial.text()).is_none() {
            assert!(started.elapsed() < DEADLINE, "the guest asked for {requests} pages and did not tick");
            match messages.recv_timeout(Duration::from_millis(20)) {
                Ok(ReturnMessage::Pages(range)) => {
                    requests += 1;
                    self.send_requested(range);
                }
                Ok(ReturnMessage::Pong(StreamWriter::PING_LOADED)) => loaded = true,
                Err(RecvTimeoutError::Timeout) => {}
                other => panic!("{other:?} while the guest starts"),
            }
        }
        assert!(loaded, "the guest runs when its devices are loaded");
        requests
    }

    /// Sends what is left, and what is asked for before that.
    fn push_rest(mut self, messages: &Receiver<ReturnMessage>) {
        while let Some(PageAt { block, offset_bytes }) = self.missing.first().copied() {
            while let Ok(ReturnMessage::Pages(range)) = messages.try_recv() {
                self.send_requested(range);
            }
            let length_bytes = (64 * PAGE_BYTES as u64).min(self.saved.blocks[block].size_bytes - offset_bytes);
            self.send(PageRange { block, start_bytes: offset_bytes, length_bytes });
        }
        if let Some((mut stream, writer)) = self.urgent {
            let mut out = Vec::new();
            writer.finish(&mut out);
            stream.write_all(&out).unwrap();
        }
        let mut out = Vec::new();
        self.writer.finish(&mut out);
        self.stream.write_all(&out).unwrap();
    }

    /// Sends those of these pages that were not sent.
    fn send(&mut self, range: PageRange) {
        let mut out = Vec::new();
        for at in pages_of(range).filter(|at| self.missing.remove(at)) {
            self.saved.put(&mut self.writer, at, &mut out);
        }
        self.writer.end_section(&mut out);
        self.stream.write_all(&out).unwrap();
    }

    /// The same for pages that were asked for.
    fn send_requested(&mut self, range: PageRange) {
        let Some((stream, writer)) = &mut self.urgent else { return self.send(range) };
        let mut out = Vec::new();
        for at in pages_of(range).filter(|at| self.missing.remove(at)) {
            match &self.saved.pages[&at] {
                Some(bytes) => writer.page(at, bytes, &mut out).unwrap(),
                None => writer.zero_page(at, &mut out).unwrap(),
            }
        }
        stream.write_all(&out).unwrap();
    }
}

fn pages_of(PageRange { block, start_bytes, length_bytes }: PageRange) -> impl Iterator<Item = PageAt> {
    let offsets = (start_bytes..start_bytes + length_bytes).step_by(PAGE_BYTES);
    offsets.map(move |offset_bytes| PageAt { block, offset_bytes })
}

/// Pages as ranges.
fn ranges(pages: &BTreeSet<PageAt>) -> Vec<PageRange> {
    let mut ranges: Vec<PageRange> = Vec::new();
    for PageAt { block, offset_bytes } in pages {
        match ranges.last_mut() {
            Some(last) if last.block == *block && last.start_bytes + last.length_bytes == *offset_bytes => {
                last.length_bytes += PAGE_BYTES as u64;
            }
            _ => ranges.push(PageRange { block: *block, start_bytes: *offset_bytes, length_bytes: PAGE_BYTES as u64 }),
        }
    }
    ranges
}

/// Reads what the target sends, in a thread of its own: it must never have to wait for us to read.
fn listen(mut stream: UnixStream, mut path: ReturnPath) -> Receiver<ReturnMessage> {
    let (sender, receiver): (Sender<ReturnMessage>, _) = channel();
    std::thread::spawn(move || {
        let (mut buffer, mut more) = (Vec::new(), [0; 4096]);
        while let Ok(length @ 1..) = stream.read(&mut more) {
            buffer.extend_from_slice(&more[..length]);
            while let Some((message, length)) = path.decode(&buffer).unwrap() {
                buffer.drain(..length);
                if sender.send(message).is_err() {
                    return;
                }
            }
            assert!(buffer.len() < ReturnPath::MESSAGE_BYTES_MAX);
        }
    });
    receiver
}
