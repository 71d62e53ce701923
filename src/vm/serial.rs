//! The guest's first serial port, carried between QEMU's socket and whoever listens to it.

use std::fmt;
use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::limits::{SERIAL_BUFFER_BYTES, SERIAL_DRAIN_DEADLINE};

/// The two ends of a serial cable.
pub struct SerialPort {
    /// Takes what the guest sends. If it fails, the rest is thrown away and the guest runs on.
    pub output: Box<dyn AsyncWrite + Send + Sync + Unpin>,
    /// Gives what the guest receives.
    pub input: Option<Box<dyn AsyncRead + Send + Sync + Unpin>>,
}

impl fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SerialPort").field("has_input", &self.input.is_some()).finish_non_exhaustive()
    }
}

/// The task that carries; dropping it lets go of the cable.
#[derive(Debug)]
pub(super) struct Carrier(JoinHandle<SerialPort>);

impl Carrier {
    pub(super) fn start(stream: UnixStream, port: SerialPort) -> Self {
        Self(tokio::spawn(carry(stream, port)))
    }

    /// Lets the rest of what a QEMU that has ended wrote reach its listener. Gives the port for another QEMU, if that is not
    /// too slow.
    pub(super) async fn drain(mut self) -> Option<SerialPort> {
        tokio::time::timeout(SERIAL_DRAIN_DEADLINE, &mut self.0).await.ok()?.ok()
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Carries bytes until QEMU closes its side.
async fn carry(stream: UnixStream, mut port: SerialPort) -> SerialPort {
    let (from_guest, mut to_guest) = stream.into_split();
    let SerialPort { output, input } = &mut port;
    let sending = async {
        if let Some(input) = input {
            send(input, &mut to_guest).await;
        }
        // The guest may talk on after its input has ended. Our half stays open: QEMU takes a closed one for a cable
        // that was pulled out.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = receive(from_guest, output) => {}
        () = sending => {}
    }
    port
}

async fn receive(mut from_guest: impl AsyncRead + Unpin, output: impl AsyncWrite + Unpin) {
    let mut output = Some(output);
    let mut buffer = vec![0; SERIAL_BUFFER_BYTES];
    while let Ok(count @ 1..) = from_guest.read(&mut buffer).await {
        let Some(open) = &mut output else { continue };
        if let Err(error) = write(open, &buffer[..count]).await {
            tracing::warn!("the guest's serial output is lost from here on: {error}");
            output = None;
        }
    }
}

async fn write(output: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    output.write_all(bytes).await?;
    output.flush().await
}

async fn send(mut input: impl AsyncRead + Unpin, to_guest: &mut (impl AsyncWrite + Unpin)) {
    // An error on either side means that nothing more can be typed, which needs no words.
    let mut buffer = vec![0; SERIAL_BUFFER_BYTES];
    while let Ok(count @ 1..) = input.read(&mut buffer).await {
        if to_guest.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn carries_both_ways_and_ends_with_qemu() {
        let (ours, mut qemu) = UnixStream::pair().unwrap();
        let (mut keyboard, input) = tokio::io::duplex(64);
        let (output, mut screen) = tokio::io::duplex(64);
        let port = SerialPort { output: Box::new(output), input: Some(Box::new(input)) };
        let carrier = tokio::spawn(carry(ours, port));
        keyboard.write_all(b"ls\n").await.unwrap();
        let mut typed = [0; 3];
        qemu.read_exact(&mut typed).await.unwrap();
        assert_eq!(&typed, b"ls\n");
        drop(keyboard);
        qemu.write_all(b"login: ").await.unwrap();
        drop(qemu);
        // The port is given back, for another QEMU.
        let SerialPort { output, input } = carrier.await.unwrap();
        assert!(input.is_some());
        drop(output);
        let mut shown = String::new();
        screen.read_to_string(&mut shown).await.unwrap();
        assert_eq!(shown, "login: ");
    }

    #[tokio::test]
    async fn a_closed_output_does_not_stop_the_guest() {
        let (ours, mut qemu) = UnixStream::pair().unwrap();
        let (output, screen) = tokio::io::duplex(64);
        drop(screen);
        let carrier = tokio::spawn(carry(ours, SerialPort { output: Box::new(output), input: None }));
        for _ in 0..64 {
            qemu.write_all(&[b'x'; 4096]).await.unwrap();
        }
        drop(qemu);
        carrier.await.unwrap();
    }
}
