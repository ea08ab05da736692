//! What several test files share.
#![allow(dead_code, reason = "every test file is a crate of its own and uses a part")]

pub(crate) mod toy;
