//! Exports an image that is published elsewhere: several reads under way, written in their order.

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt};
use tokio::sync::mpsc;
use vmnetx_store::{Image, Piece};

use super::target::Target;
use super::{ExportOptions, ExportReport, disk_position};
use crate::limits::REMOTE_READS;
use crate::remote::{open, stored_ranges};
use crate::{Error, Progress};

/// What was read at an offset.
type Read = (u64, Vec<Piece>);

/// Exports a disk through the store.
pub(super) fn export(options: &ExportOptions, target: Target, progress: &dyn Progress) -> Result<ExportReport, Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Error::Runtime)?;
    let package = open(&runtime, &options.reader.once_store()?, &options.link, progress)?;
    disk_position(package.manifest(), options)?;
    let image = Arc::clone(package.image(&options.disk).ok_or(Error::Stopped)?);
    progress.total(image.size_bytes());
    // Writing blocks, so it stays on this thread, and the reads go on beside it.
    let (sender, mut reads) = mpsc::channel(REMOTE_READS);
    let reading = runtime.spawn(read_all(Arc::clone(&image), sender));
    let data_bytes = write_all(&mut reads, target, image.size_bytes(), progress, || {
        runtime.block_on(reading).unwrap_or(Err(Error::Stopped))
    })?;
    let size_bytes = image.size_bytes();
    Ok(ExportReport { version: package.version().manifest, disk: options.disk.clone(), size_bytes, data_bytes })
}

/// Writes what arrives; `end` says, when nothing does any more, whether that was all.
fn write_all(
    reads: &mut mpsc::Receiver<Read>,
    mut target: Target,
    size_bytes: u64,
    progress: &dyn Progress,
    end: impl FnOnce() -> Result<(), Error>,
) -> Result<u64, Error> {
    if let Target::File(file) = &target {
        file.set_size(size_bytes)?;
    }
    let (mut done, mut data_bytes) = (0, 0);
    while let Some((offset, pieces)) = reads.blocking_recv() {
        let mut at = offset;
        if let Target::Stdout(stdout) = &mut target {
            stdout.write_zeros(offset - done)?;
        }
        for piece in pieces {
            match (&piece, &mut target) {
                (Piece::Data(data), Target::File(file)) => file.write_at(data, at)?,
                (Piece::Data(data), Target::Stdout(stdout)) => stdout.write(data)?,
                (Piece::Zeros(_), Target::File(_)) => {}
                (Piece::Zeros(zeros), Target::Stdout(stdout)) => stdout.write_zeros(*zeros)?,
            }
            if let Piece::Data(data) = &piece {
                data_bytes += data.len() as u64;
            }
            at += piece.len();
        }
        progress.advance(at - done);
        done = at;
    }
    end()?;
    progress.advance(size_bytes - done);
    match target {
        Target::File(file) => file.finish()?,
        Target::Stdout(mut stdout) => stdout.write_zeros(size_bytes - done)?,
    }
    Ok(data_bytes)
}

/// Reads all that is stored of an image, in order.
pub(super) async fn read_all(image: Arc<Image>, sender: mpsc::Sender<Read>) -> Result<(), Error> {
    image.warm_index();
    let reads = stored_ranges(&image).map_ok(|(offset, length)| {
        let image = Arc::clone(&image);
        async move { Ok((offset, image.read(offset, length).await?)) }
    });
    let mut reads = std::pin::pin!(reads.try_buffered(REMOTE_READS));
    while let Some(read) = reads.next().await {
        // A writer that is gone has failed and tells why.
        if sender.send(read?).await.is_err() {
            break;
        }
    }
    Ok(())
}
