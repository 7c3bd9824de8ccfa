package hsmstore

// ProbeAlgorithm is that of every probe key.
const ProbeAlgorithm = "P-256"

// CheckName holds the shape of names: 1 to 63 of a-z, 0-9, '.', '_', '-', starting with
// a letter or digit. what ("key", "member") begins the error.
func CheckName(what, name string) error { return checkName(what, name) }

// ProbeSpec is the probe key that a member gets when it joins; its name is a new one if
// a member of that name has left before.
func (s *Store) ProbeSpec(member string) KeySpec { return s.probeSpec(member) }
