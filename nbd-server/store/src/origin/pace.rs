//! How long an origin takes to begin its answers: what a late one is measured against.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::limits::PACE_SAMPLES;

/// The latest times from a request to the head of its response.
#[derive(Debug, Default)]
pub(crate) struct Pace(Mutex<VecDeque<Duration>>);

impl Pace {
    /// A response began so long after its request.
    pub(crate) fn first_byte(&self, took: Duration) {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if times.len() >= PACE_SAMPLES {
            times.pop_front();
        }
        times.push_back(took);
    }

    /// The time within which `part` of the latest responses began; nothing as long as few are known.
    pub(crate) fn quantile(&self, part: f64) -> Option<Duration> {
        let mut times: Vec<Duration> = self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        times.sort_unstable();
        let position = ((times.len() as f64 * part) as usize).min(times.len().saturating_sub(1));
        times.get(position).copied().filter(|_| times.len() >= PACE_SAMPLES / 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn late_answers_stand_out_and_old_ones_are_forgotten() {
        let pace = Pace::default();
        assert_eq!(pace.quantile(0.5), None);
        for number in 0..PACE_SAMPLES as u32 {
            pace.first_byte(if number % 8 == 0 { 300 * MS } else { 20 * MS });
        }
        assert_eq!((pace.quantile(0.5), pace.quantile(0.95)), (Some(20 * MS), Some(300 * MS)));
        (0..PACE_SAMPLES).for_each(|_| pace.first_byte(40 * MS));
        assert_eq!((pace.quantile(0.0), pace.quantile(1.0)), (Some(40 * MS), Some(40 * MS)));
    }
}
