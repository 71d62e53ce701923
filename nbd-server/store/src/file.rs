//! Files of repositories and caches that others may have put together, or another clock dated.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::SystemTime;

use rustix::fs::OFlags;

use crate::limits::CLOCK_SLACK;

/// Opens a file to be read if it is a regular one. A pipe in its place would be waited for without end.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a regular file")) }
}

/// When a file was used or written, for the sake of which the oldest one goes. A time that has not come yet says nothing:
/// the clock was put back since. Such a file is the oldest, or it would stay, and all newer ones go, until the time has come.
pub(crate) fn age_time(time: io::Result<SystemTime>, now: SystemTime) -> SystemTime {
    let has_come = |time: &SystemTime| *time <= now + CLOCK_SLACK;
    time.ok().filter(has_come).unwrap_or(SystemTime::UNIX_EPOCH)
}
