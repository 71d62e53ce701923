//! The guest's serial port on our standard input and output.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::net::Shutdown;
use std::os::fd::AsFd;

use tokio::net::UnixStream;

use crate::vm::SerialPort;

/// A serial port whose ends are standard input and standard output.
///
/// Standard input is read by a thread of its own that nobody waits for: no read of it can be broken off. In the
/// background of a terminal it is left alone, because reading it there would stop this process.
pub(super) fn serial_port() -> io::Result<SerialPort> {
    let stdout = io::stdout().as_fd().try_clone_to_owned()?;
    let output = Box::new(tokio::fs::File::from_std(File::from(stdout)));
    if !may_read_stdin() {
        return Ok(SerialPort { output, input: None });
    }
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair()?;
    std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        // An end of either side is the end of typing, no error.
        let _ = io::copy(&mut io::stdin().lock(), &mut theirs);
        let _ = theirs.shutdown(Shutdown::Both);
    })?;
    ours.set_nonblocking(true)?;
    Ok(SerialPort { output, input: Some(Box::new(UnixStream::from_std(ours)?)) })
}

fn may_read_stdin() -> bool {
    let stdin = io::stdin();
    !stdin.is_terminal() || rustix::termios::tcgetpgrp(&stdin).is_ok_and(|group| group == rustix::process::getpgrp())
}
