//! Measures an origin's line by the requests that go over it anyway: how long a round trip takes, and what it carries.
//!
//! A request for a few chunks takes a round trip and then as long as its bytes take, so round trip and rate are those of the
//! straight line through the times and sizes of the requests of late (least squares). Unlike the intervals between pieces of
//! a body this does not depend on when this process gets round to reading them.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What is known of a line.
#[derive(Debug, Default)]
pub(crate) struct Meter(Mutex<Sums>);

/// Sums over the requests of late; x are bytes and y seconds.
#[derive(Debug, Default, Clone, Copy)]
struct Sums {
    count: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
}

/// What a request counts after the next one: some thirty of them make the measurement.
const FADE: f64 = 0.97;

/// Requests before anything is said.
const REQUESTS_MIN: f64 = 8.0;

impl Meter {
    /// A request was over after `time`; its response had `bytes`.
    pub(crate) fn add(&self, bytes: u64, time: Duration) {
        let (x, y) = (bytes as f64, time.as_secs_f64());
        let mut sums = self.lock();
        let old = *sums;
        *sums = Sums {
            count: old.count.mul_add(FADE, 1.0),
            x: old.x.mul_add(FADE, x),
            y: old.y.mul_add(FADE, y),
            xx: old.xx.mul_add(FADE, x * x),
            xy: old.xy.mul_add(FADE, x * y),
        };
    }

    /// The bytes that the line carries in a round trip, if that is known.
    pub(crate) fn round_trip_bytes(&self) -> Option<u64> {
        let Sums { count, x, y, xx, xy } = *self.lock();
        if count < REQUESTS_MIN {
            return None;
        }
        let seconds_per_byte = count.mul_add(xy, -x * y) / count.mul_add(xx, -x * x);
        let round_trip = seconds_per_byte.mul_add(-x, y) / count;
        let bytes = round_trip / seconds_per_byte;
        // Requests of one size say nothing, and noise can make anything of requests that differ little.
        (bytes.is_finite() && round_trip > 0.0 && seconds_per_byte > 0.0).then_some(bytes as u64)
    }

    fn lock(&self) -> MutexGuard<'_, Sums> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests over a line with this round trip and rate, some of them late.
    fn requests(meter: &Meter, count: u64, round_trip_ms: u64, bytes_per_ms: u64) {
        for number in 0..count {
            let bytes = 20_000 + number * 7919 % 120_000;
            let late_ms = number * 31 % 3;
            meter.add(bytes, Duration::from_millis(round_trip_ms + bytes / bytes_per_ms + late_ms));
        }
    }

    #[test]
    fn round_trip_and_rate_are_found_in_the_times_of_requests() {
        let meter = Meter::default();
        assert_eq!(meter.round_trip_bytes(), None);
        requests(&meter, 100, 20, 12_500);
        let bytes = meter.round_trip_bytes().unwrap();
        assert!((200_000..320_000).contains(&bytes), "{bytes}");
    }

    #[test]
    fn a_line_that_changes_is_noticed() {
        let meter = Meter::default();
        requests(&meter, 100, 1, 125_000);
        requests(&meter, 200, 80, 1_250);
        let bytes = meter.round_trip_bytes().unwrap();
        assert!((90_000..115_000).contains(&bytes), "{bytes}");
    }

    #[test]
    fn requests_of_one_size_say_nothing() {
        let meter = Meter::default();
        for _ in 0..100 {
            meter.add(50_000, Duration::from_millis(25));
        }
        assert_eq!(meter.round_trip_bytes(), None);
    }
}
