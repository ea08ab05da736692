//! The `berthier` command.

fn main() {}
