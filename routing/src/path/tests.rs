//! Ways on small maps, against every way that there is.
#![allow(clippy::unwrap_used)]
