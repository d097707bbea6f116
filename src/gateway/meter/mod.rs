//! What a request may use and what it used, read from bodies and streams.
