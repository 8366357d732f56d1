//! What is kept of each caller, common to all workers.

use plugin_kit::shared_data::{Expected, SharedData, WriteError};

use crate::quota::{Decision, Quota};

/// Counts in shared data.
#[derive(Debug)]
pub struct Ledger<D> {
    data: D,
    /// Keeps apart what several of these plugins count.
    prefix: Vec<u8>,
    quota: Quota,
}

/// Why nobody knows whether a request may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The host has no room for another caller, or shared data are not for this plugin.
    Refused,
    /// Others were faster, again and again.
    Contended,
}

/// Every failed attempt means that a request of this caller elsewhere got through; with one worker a core
/// this many in a row do not happen.
const ATTEMPTS: u32 = 64;

impl<D: SharedData> Ledger<D> {
    /// Counts under `name`.
    pub fn new(data: D, name: &[u8], quota: Quota) -> Self {
        Self { data, prefix: [b"caller-quota ", name, b" "].concat(), quota }
    }

    /// Decides on a request of `caller` and keeps what follows.
    ///
    /// # Errors
    /// See [`Trouble`]. The request must not pass then: else whoever fills the store has no quota.
    pub fn admit(&self, caller: &[u8], now: u64) -> Result<Decision, Trouble> {
        let key = [&self.prefix, caller].concat();
        for _ in 0..ATTEMPTS {
            let kept = self.data.read(&key);
            let due = kept.as_ref().and_then(|(value, _)| value.first_chunk());
            let decision = self.quota.decide(due.map(|due| u64::from_le_bytes(*due)), now);
            let Decision::Allowed { due, .. } = decision else {
                return Ok(decision);
            };
            let expected = match kept {
                Some((_, number)) => Expected::Unchanged(number),
                None => Expected::Absent,
            };
            match self.data.write(&key, &due.to_le_bytes(), expected) {
                Ok(()) => {
                    self.data.expire(&key, Quota::life(due, now));
                    return Ok(decision);
                }
                Err(WriteError::Changed) => {}
                Err(WriteError::Refused) => return Err(Trouble::Refused),
            }
        }
        Err(Trouble::Contended)
    }
}

#[cfg(test)]
mod tests {
    use plugin_kit::shared_data::InMemory;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn ledger() -> Ledger<InMemory> {
        Ledger::new(InMemory::default(), b"shop", Quota::new(2, SECOND, 2).unwrap())
    }

    fn remaining(decision: Result<Decision, Trouble>) -> Option<u32> {
        match decision.unwrap() {
            Decision::Allowed { remaining, .. } => Some(remaining),
            Decision::Limited { .. } => None,
        }
    }

    #[test]
    fn each_caller_has_a_quota_of_its_own() {
        let ledger = ledger();
        let admit = |caller: &[u8]| remaining(ledger.admit(caller, SECOND));
        assert_eq!([admit(b"a"), admit(b"a"), admit(b"a")], [Some(1), Some(0), None]);
        assert_eq!([admit(b"b"), admit(b"b"), admit(b"b")], [Some(1), Some(0), None]);
    }

    #[test]
    fn whoever_was_slower_tries_again() {
        let ledger = ledger();
        ledger.data.refuse(&[WriteError::Changed; 3]);
        assert_eq!(remaining(ledger.admit(b"a", SECOND)), Some(1));
        ledger.data.refuse(&[WriteError::Changed; ATTEMPTS as usize]);
        assert_eq!(ledger.admit(b"a", SECOND), Err(Trouble::Contended));
    }

    #[test]
    fn no_room_is_no_yes() {
        let ledger = ledger();
        ledger.data.refuse(&[WriteError::Refused]);
        assert_eq!(ledger.admit(b"a", SECOND), Err(Trouble::Refused));
    }
}
