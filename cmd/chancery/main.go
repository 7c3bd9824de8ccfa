// Command chancery is the whole certificate authority in one binary: see
// docs/ARCHITECTURE.md. It builds the rooms of the house by hand, in order, and
// hands configuration down as typed values; nothing below it reads a flag, a file
// of settings or the environment.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"chancery/audit"
	"chancery/hsmstore"
)

// version is set by the Makefile.
var version = "unknown"

// Exit codes (README, "Exit codes").
const (
	exitError  = 1
	exitUsage  = 2
	exitConfig = 3
	exitHSM    = 6
	exitVerify = 7
)

// exit is an error with the code that the process ends with.
type exit struct {
	code int
	err  error
}

func (e *exit) Error() string { return e.err.Error() }
func (e *exit) Unwrap() error { return e.err }

func main() {
	hsmstore.RunIfWorker() // does not return in an HSM worker
	// PINs pass through this process on their way to the workers: no core dump keeps them.
	_ = syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}) // may only be lowered, which never fails
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)              // nor can another process of this user read them
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := root().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "chancery: "+strings.ReplaceAll(err.Error(), "\n", "; "))
		os.Exit(code(err))
	}
}

func root() *cobra.Command {
	c := &cobra.Command{
		Use: "chancery", Short: "A private certificate authority whose keys live in a cluster of HSMs",
		SilenceUsage: true, SilenceErrors: true, Version: build(),
	}
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &exit{exitUsage, fmt.Errorf("%w; see chancery %s --help", err, c.Name())}
	})
	c.AddCommand(devCommand(), initCommand(), serveCommand(), officerCommand(), machineCommand(), whoamiCommand(), signCommand(), verifyCommand(), hsmCommand(), keyCommand(), approveCommand(), auditCommand(), doctorCommand())
	tell(c)
	complete(c)
	return c
}

// noArgs refuses words that a command does not know.
func noArgs(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return &exit{exitUsage, fmt.Errorf("%s takes no argument %q; see %s --help", c.CommandPath(), args[0], c.CommandPath())}
	}
	return nil
}

func code(err error) int {
	var e *exit
	var v *audit.Violation
	switch {
	case errors.As(err, &e):
		return e.code
	case errors.As(err, &v), errors.Is(err, audit.ErrTampered):
		return exitVerify
	case errors.Is(err, hsmstore.ErrPIN), errors.Is(err, hsmstore.ErrModule), errors.Is(err, hsmstore.ErrToken), errors.Is(err, hsmstore.ErrUnavailable):
		return exitHSM
	case strings.HasPrefix(err.Error(), "unknown command"):
		return exitUsage
	}
	return exitError
}

// newLog makes the one logger of the process.
func newLog(level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, &exit{exitUsage, fmt.Errorf("--log %q is not known; allowed: debug, info, warn, error", level)}
	}
	return slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: l})), nil
}

// build names the program in the ledger.
func build() string {
	if version != "unknown" {
		return version
	}
	if bi, ok := debug.ReadBuildInfo(); ok {
		for _, s := range bi.Settings {
			if s.Key == "vcs.revision" {
				return s.Value[:min(12, len(s.Value))]
			}
		}
	}
	return version
}
