//! countersign-proxy: the data plane, and `capture`, which installs the redirect.
