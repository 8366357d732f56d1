//! What the machines of resilience do together: simulated endpoints that fail in every way, a caller that is protected
//! by the real machines, glued as the data path glues them, and one that is not. Deterministic: a hand-driven clock, a
//! seeded random source, no thread.
//!
//! - [`clock`]: what happens when; [`random`]: the only source of chance.
//! - [`instance`]: an application that can do so much at once; [`shield`]: its own sidecar's limit.
//! - [`caller`]: what all callers can do; [`plain`]: round robin; [`protected`]: the real machines.
//! - [`scenario`]: who does what when; [`run`]: lets it happen; [`figures`]: what came of it.
//! - [`tests`]: the figures that must hold, and that they do not hold without protection.
//! - [`hostile`]: clocks, settings and sets of endpoints that nobody should have.

mod caller;
mod clock;
mod figures;
mod hostile;
mod instance;
mod plain;
mod protected;
mod random;
mod run;
mod scenario;
mod shield;
mod tests;
