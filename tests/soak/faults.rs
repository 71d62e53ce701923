//! The misfortunes: of the server, of its cache directory, and of the origin.

use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;

use crate::support::bad_http::Answer;
use crate::world::Random;

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fault {
    /// A new version is published, and the server goes on with the one that it has.
    Published,
    /// The server is killed, and another one is started on the same cache directory.
    Killed,
    /// Files of the cache directory are damaged, cut short, or removed under the running server.
    CacheDamaged,
    /// The file system of the cache directory is full for a while.
    DiskFull,
    /// The server is told to end, and another one is started.
    Restarted,
    /// The origin answers some requests with an error.
    OriginRefuses,
    /// Its answers break off.
    OriginTruncates,
    /// It sends other bytes than were asked for, under true and false labels.
    OriginLies,
    /// Its answers come late.
    OriginDelays,
    /// Nobody listens there.
    OriginDown,
    /// Its answers begin, and never end.
    OriginStalls,
}

impl Fault {
    /// In the order in which they happen. Those come first that are no excuse for a read that fails: what the origin does is
    /// one for some time after.
    pub(crate) const ALL: [Self; 11] = [
        Self::Published,
        Self::Killed,
        Self::CacheDamaged,
        Self::DiskFull,
        Self::Restarted,
        Self::OriginRefuses,
        Self::OriginTruncates,
        Self::OriginLies,
        Self::OriginDelays,
        Self::OriginDown,
        Self::OriginStalls,
    ];

    /// How an origin that has this fault answers a request. Now and then it answers well.
    pub(crate) fn answer(self, random: &mut Random) -> Answer {
        if random.below(3) == 0 {
            return Answer::Good;
        }
        let bytes = random.below(40_000) as usize;
        match (self, random.below(5)) {
            (Self::OriginRefuses, 0) => Answer::Status(500),
            (Self::OriginRefuses, 1) => Answer::Status(429),
            (Self::OriginRefuses, _) => Answer::Status(503),
            (Self::OriginTruncates, 0 | 1) => Answer::Cut(bytes),
            (Self::OriginTruncates, 2) => Answer::WrongLength(-(bytes as i64)),
            (Self::OriginTruncates, _) => Answer::Reset(bytes),
            (Self::OriginLies, 0) => Answer::OtherRange(4096),
            (Self::OriginLies, 1) => Answer::Labelled("bytes 0-1/2"),
            (Self::OriginLies, 2) => Answer::More(7),
            (Self::OriginLies, _) => Answer::Damaged(bytes),
            (Self::OriginDelays, _) => late(Duration::from_millis(50 + random.below(500))),
            (Self::OriginStalls, _) => Answer::Stall(bytes),
            _ => Answer::Good,
        }
    }
}

fn late(by: Duration) -> Answer {
    let (opener, open) = watch::channel(false);
    tokio::spawn(async move {
        tokio::time::sleep(by).await;
        let _ = opener.send(true);
    });
    Answer::When(open)
}
