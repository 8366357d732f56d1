//! From resources to a snapshot: sources bring resources, `inputs` keeps them indexed and knows what a change
//! concerns, `compile` makes a snapshot of them, `apply` puts it in force and answers the source.

pub mod apply;
pub mod compile;
pub mod inputs;
pub mod last_good;
pub mod source;
pub mod text;
