//! Sentence embeddings at the speed of the hardware.
//!
//! Berthier runs Sentence-BERT models (an encoder, a pooling, a vector) from their safetensors files with
//! its own kernels, and gives the vectors that sentence-transformers gives, or refuses with a reason.
//!
//! ```no_run
//! use berthier::{Embedder, Options};
//!
//! let embedder = Embedder::load(Options::new("path/to/all-MiniLM-L6-v2"))?;
//! let vectors = embedder.embed(&["How do I reset my password?", "Forgot my login"])?;
//! println!("{} rows of {} floats", vectors.len(), vectors.dim());
//! let cosine: f32 = vectors.row(0).iter().zip(vectors.row(1)).map(|(a, b)| a * b).sum();
//! # Ok::<(), berthier::Error>(())
//! ```
//!
//! # The rooms
//! Text goes through [`tokenize`], [`batch`] and [`backend`]; [`model`] is read once, at load; [`Embedder`]
//! walks the rooms. Everything is `&self`, `Send + Sync`; there is no global state, nothing is printed, and
//! no input makes it panic.
//!
//! # Guarantees
//! - A text's vector does not depend, to the bit, on the texts beside it or on the number of threads.
//! - What a model directory asks for is computed exactly or refused at load ([`Error::Unsupported`]).
//! - Truncation is reported for every row ([`TokenCount::truncated`]).
//! - An embedder uses the threads that it was given ([`Options::threads`]) and no more; with one, it works
//!   on the caller's thread.
//!
//! # Features
//! `cli` (default) is for the `berthier` command; libraries use `default-features = false`.
//! `hub` lets the command download from the Hugging Face hub.

pub mod backend;
pub mod batch;
mod engine;
mod error;
pub mod model;
mod options;
mod threads;
pub mod tokenize;

pub use engine::{DeviceInfo, Embedder, Embeddings, Stream, TokenCount};
pub use error::{Error, Result};
pub use options::{Normalize, Options};
pub use threads::Threads;
