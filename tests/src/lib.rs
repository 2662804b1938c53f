//! End-to-end tests of the whole: real processes, namespaces, kernel forwarding.
