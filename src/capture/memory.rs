//! The memory and the devices of a VM that stands still: QEMU's migration stream, from a socket into a file.
//!
//! The file is packed when the guest runs again. Until then nothing is done to the stream but to write it down.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};

use serde_json::json;
use tokio::net::UnixListener;
use tokio::time::{Instant, sleep, timeout};

use super::Error;
use super::limits::{LOOK, STREAM_BUFFER_BYTES, STREAM_END_DEADLINE, STREAM_STALL, STREAM_START_DEADLINE};
use super::monitor::Monitor;
use crate::vm::RunDir;

/// Saves a VM into a file in `run_dir`.
pub(super) async fn save(monitor: &mut Monitor, run_dir: &RunDir) -> Result<PathBuf, Error> {
    let socket = run_dir.socket("memory")?;
    let failed = |doing| move |source| Error::Memory { doing, source };
    let listener = UnixListener::bind(&socket).map_err(failed("listen for the guest's memory"))?;
    let uri = format!("unix:{}", socket.display());
    monitor.tell("migrate", &json!({ "uri": uri })).await?;
    let accepted = timeout(STREAM_START_DEADLINE, listener.accept()).await;
    let accept = failed("accept the guest's memory");
    let accepted = accepted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let stream = match accepted.and_then(|(stream, _)| stream.into_std()) {
        Ok(stream) => stream,
        // QEMU knows better why it does not come.
        Err(source) => {
            return Err(match monitor.migration().await?.end() {
                Some(Err(words)) => Error::NotSaved(words),
                _ => accept(source),
            });
        }
    };
    let file = run_dir.path().join("memory.stream");
    let target = file.clone();
    let copying = tokio::task::spawn_blocking(move || copy(stream, &target));
    copying.await.map_err(|error| failed("write the guest's memory")(io::Error::other(error)))??;
    ended(monitor).await?;
    Ok(file)
}

/// Writes down what comes from a socket, to its end.
fn copy(mut stream: StdStream, target: &Path) -> Result<(), Error> {
    let read = |source| Error::Memory { doing: "read the guest's memory", source };
    let write = |source| Error::Memory { doing: "write the guest's memory into a scratch file", source };
    stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(STREAM_STALL))).map_err(read)?;
    let mut file = File::create_new(target).map_err(write)?;
    let mut buffer = vec![0; STREAM_BUFFER_BYTES];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => file.write_all(&buffer[..length]).map_err(write)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Err(Error::Stalled);
            }
            Err(error) => return Err(read(error)),
        }
    }
}

/// Whether all was saved: the stream's end alone does not tell.
async fn ended(monitor: &mut Monitor) -> Result<(), Error> {
    let deadline = Instant::now() + STREAM_END_DEADLINE;
    loop {
        match monitor.migration().await?.end() {
            Some(end) => return end.map_err(Error::NotSaved),
            None if Instant::now() >= deadline => {
                return Err(Error::NotSaved("it does not say that it is done".to_owned()));
            }
            None => sleep(LOOK / 4).await,
        }
    }
}
