//! From resources to a snapshot: sources bring resources, `inputs` keeps them indexed and knows what a change
//! concerns, `prepare` fetches and loads plugins, `compile` makes a snapshot of it all, `apply` puts it in force and
//! answers the source.

pub mod apply;
mod canary;
pub mod compile;
pub mod inputs;
pub mod last_good;
pub mod pack;
pub mod prepare;
pub mod source;
pub mod text;
