//! An `.npy` file of vectors: the input is the file. What opens has all of its rows in it. The reader is the
//! command's, so its file is taken in as it is, with a stand-in for the command's errors.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;
use std::sync::LazyLock;

#[path = "../../src/cli/npy.rs"]
#[allow(dead_code, reason = "the command uses more of it")]
mod npy;
#[path = "../../src/search/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the command uses more of it")]
mod search;

mod report {
    /// The command's, without what it prints.
    #[derive(Debug)]
    pub(crate) struct Failure(String);

    impl Failure {
        pub(crate) fn io(what: impl std::fmt::Display, error: &std::io::Error) -> Self {
            Self(format!("{what}: {error}"))
        }
    }

    impl From<String> for Failure {
        fn from(message: String) -> Self {
            Self(message)
        }
    }
}

static FILE: LazyLock<PathBuf> =
    LazyLock::new(|| tempfile::tempdir().expect("a temporary directory").keep().join("vectors.npy"));

fuzz_target!(|data: &[u8]| {
    std::fs::write(&*FILE, data).expect("a writable directory");
    if let Ok(file) = npy::Npy::open(&FILE) {
        let matrix = file.data().expect("data that were there when it was opened");
        assert_eq!(matrix.rows(), file.rows());
        let numbers = match matrix.data {
            search::Data::F32(numbers) => numbers.len() * 4,
            search::Data::F16(numbers) => numbers.len() * 2,
        };
        assert!(numbers < data.len());
    }
});
