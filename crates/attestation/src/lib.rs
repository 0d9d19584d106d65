//! Evidence: gathering it (proxy) and verifying it (control plane), one file per kind.
