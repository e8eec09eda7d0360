"""The pitch of a short sound in hertz, by a formula or one of three networks.  See README.md in this folder."""
