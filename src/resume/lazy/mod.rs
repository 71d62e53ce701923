//! The mode `lazy`: we are the source of a postcopy migration, and the guest runs before its memory is there.
//!
//! ```text
//!  QEMU ◀── devices, run, pages ── source ◀── pages ── background   what was recorded, then all the rest
//!   │                                │ ▲
//!   └──── requests ─── listener ─────┘ └── pages ──── reads of what was asked for, and of what lies beside it
//! ```
//!
//! A page that the guest waits for is read and sent ahead of everything; what is pushed comes in pieces so small that it never
//! waits long. Reads outlast outages (module `export`): the guest stands still on a page, it does not crash. What is damaged ends it
//! when it needs that, and not before: what is pushed leaves such pages out. When every page has been sent, QEMU needs us no more.

mod activity;
mod background;
mod missing;
mod source;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use vmnetx_format::migration::{
    Configuration, PAGE_BYTES, PageAt, PageRange, PostcopySetup, ReturnMessage, ReturnPath, StreamWriter,
};

use self::activity::Activity;
use self::background::Background;
use self::missing::Missing;
use self::source::Source;
use super::limits::{ANSWER_DEADLINE, BEFORE_BYTES_MAX, REQUESTS_MAX};
use super::saved::{Page, Pages};
use super::{Error, Fill, Progress, Saved};

/// What QEMU asks and answers.
type Messages = mpsc::Receiver<Result<ReturnMessage, Error>>;

/// Resumes a saved VM over the channel of a QEMU that receives lazily. Returns when QEMU has all of its memory.
///
/// # Errors
/// [`Error`]; if the guest runs already, it cannot run on.
pub(super) async fn serve(
    saved: Arc<Saved>,
    channel: UnixStream,
    fill: Fill,
    progress: &Progress,
) -> Result<(), Error> {
    let (reader, mut channel) = channel.into_split();
    let (sender, mut messages) = mpsc::channel(REQUESTS_MAX);
    let path = ReturnPath::new(saved.blocks.clone());
    let _listener = AbortOnDropHandle::new(tokio::spawn(listen(reader, path, sender)));
    let missing = Shared::new(Missing::all(&saved.blocks));
    progress.begin(saved.ram_bytes());

    let mut out = Vec::new();
    let configuration = Configuration::new(&saved.configuration.machine);
    let mut setup = StreamWriter::<PostcopySetup>::start(&configuration, saved.blocks.clone(), &mut out)?;
    write(&mut channel, &mut out).await?;
    if answer(&mut messages).await? != ReturnMessage::Pong(StreamWriter::PING_STARTED) {
        return Err(Error::Silent);
    }
    let mut before = Before { saved: &saved, setup: &mut setup, missing: &missing, sent_bytes: 0 };
    if fill == Fill::All {
        before.send(&saved.order, &mut channel, &mut out).await?;
    }
    progress.advance(before.sent_bytes);

    let writer = setup.run(missing.lock().ranges(), &saved.device_state, &mut out)?;
    saved.guest_runs();
    write(&mut channel, &mut out).await?;
    let activity = Arc::new(Activity::new(fill));
    let background = match fill {
        Fill::All => Background::start(Arc::clone(&saved), missing.clone(), Arc::clone(&activity)),
        Fill::OnDemand => Background::none(),
    };
    let source = Source::new(saved, missing, activity, writer, channel, progress);
    source.run(&mut messages, background).await?;
    loop {
        match answer(&mut messages).await? {
            ReturnMessage::Shut(0) => return Ok(()),
            ReturnMessage::Shut(status) => return Err(Error::Shut(status)),
            // What was asked for while it was on its way.
            ReturnMessage::Pages(_) | ReturnMessage::Pong(_) => {}
        }
    }
}

/// The pages that were not sent yet, as the tasks share them; nobody holds them while waiting.
#[derive(Debug, Clone)]
struct Shared(Arc<Mutex<Missing>>);

impl Shared {
    fn new(missing: Missing) -> Self {
        Self(Arc::new(Mutex::new(missing)))
    }

    fn lock(&self) -> MutexGuard<'_, Missing> {
        // Nothing that changes it can panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sending pages before the guest runs: those of the order that are here by now.
struct Before<'a> {
    saved: &'a Saved,
    setup: &'a mut StreamWriter<PostcopySetup>,
    missing: &'a Shared,
    sent_bytes: u64,
}

impl Before<'_> {
    async fn send(
        &mut self,
        order: &[PageRange],
        channel: &mut OwnedWriteHalf,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        for &range in order {
            // One page at least stays missing: QEMU takes a migration without any for another one.
            if self.sent_bytes + range.length_bytes > BEFORE_BYTES_MAX || self.all_but_one(range) {
                break;
            }
            let runs = self.saved.residency(range).await?;
            if runs.iter().all(|run| run.is_here)
                && let Some(pages) = self.saved.read_ahead(range).await?
            {
                self.put(&pages, out)?;
                write(channel, out).await?;
            }
        }
        self.setup.end_section(out);
        Ok(())
    }

    fn all_but_one(&self, range: PageRange) -> bool {
        self.missing.lock().pages() <= range.length_bytes / PAGE_BYTES as u64
    }

    fn put(&mut self, pages: &Pages, out: &mut Vec<u8>) -> Result<(), Error> {
        let block = pages.range().block;
        for (offset_bytes, page) in pages.iter() {
            let at = PageAt { block, offset_bytes };
            if !self.missing.lock().take(at) {
                continue;
            }
            self.sent_bytes += PAGE_BYTES as u64;
            match page {
                Page::Zero => self.setup.zero_page(at, out)?,
                Page::Data(bytes) => self.setup.page(at, bytes, out)?,
            }
        }
        Ok(())
    }
}

/// Writes what has been put together.
async fn write(channel: &mut OwnedWriteHalf, out: &mut Vec<u8>) -> Result<(), Error> {
    channel.write_all(out).await.map_err(Error::Channel)?;
    out.clear();
    Ok(())
}

/// What QEMU says when nothing but itself can keep it from that.
async fn answer(messages: &mut Messages) -> Result<ReturnMessage, Error> {
    timeout(ANSWER_DEADLINE, messages.recv()).await.ok().flatten().ok_or(Error::Silent)?
}

/// Reads what QEMU sends, so that it need never wait for that.
async fn listen(mut reader: OwnedReadHalf, mut path: ReturnPath, sender: mpsc::Sender<Result<ReturnMessage, Error>>) {
    let mut buffer = bytes::BytesMut::with_capacity(ReturnPath::MESSAGE_BYTES_MAX);
    loop {
        let message = match path.decode(&buffer) {
            Ok(Some((message, length))) => {
                let _ = buffer.split_to(length);
                Ok(message)
            }
            Ok(None) => match reader.read_buf(&mut buffer).await {
                Ok(1..) => continue,
                // It has ended, or will not say more.
                Ok(0) => return,
                Err(error) => Err(Error::Channel(error)),
            },
            Err(error) => Err(error.into()),
        };
        let is_last = message.is_err();
        if sender.send(message).await.is_err() || is_last {
            return;
        }
    }
}
