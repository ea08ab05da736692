//! BERT: `config.json` to [`ModelDesc`](super::ModelDesc), tensor names to [`Weights`](super::Weights).
