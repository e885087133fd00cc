//! The leader's time: what the ledger has seen, and how much passed here since the term began.

use std::time::Duration;

use oast_model::time::Timestamp;

/// Calendar at the beginning of the term, this member's monotonic clock from then on, and never
/// before what the ledger has seen. The replica stamps entries in the same way.
#[derive(Debug, Default)]
pub(super) struct LedgerTime {
    base: Option<Base>,
}

#[derive(Clone, Copy, Debug)]
struct Base {
    term: u64,
    at: Timestamp,
    monotonic: Duration,
}

impl LedgerTime {
    pub(super) fn read(
        &mut self,
        term: u64,
        now: Duration,
        wall: Timestamp,
        applied: Timestamp,
    ) -> Timestamp {
        let base = match self.base {
            Some(base) if base.term == term => base,
            _ => Base {
                term,
                at: wall.max(applied),
                monotonic: now,
            },
        };
        self.base = Some(base);
        (base.at + now.saturating_sub(base.monotonic)).max(applied)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_calendar_that_jumps_moves_no_deadline() {
        let mut clock = LedgerTime::default();
        let second = Duration::from_secs(1);
        let at = Timestamp::from_millis;
        assert_eq!(clock.read(4, second, at(5_000), at(9_000)), at(9_000));
        // The calendar is set back by an hour and forward by a day.
        assert_eq!(clock.read(4, 2 * second, at(0), at(9_500)), at(10_000));
        assert_eq!(
            clock.read(4, 3 * second, at(86_400_000), at(9_500)),
            at(11_000)
        );
        // The replica stamped a little later than we looked.
        assert_eq!(clock.read(4, 3 * second, at(0), at(11_020)), at(11_020));
        // Another term begins with the calendar again.
        assert_eq!(
            clock.read(5, 3 * second, at(20_000), at(11_020)),
            at(20_000)
        );
    }
}
