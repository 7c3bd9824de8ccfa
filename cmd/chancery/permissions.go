package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"chancery/admin"
)

// needs is the one table of who may run what: for each command the permissions that its
// requests need at the server, or why it needs none.
var needs = map[string]struct {
	permissions []admin.Permission
	local       string
}{
	"approve cancel":          {permissions: []admin.Permission{admin.CancelApprovals}},
	"approve list":            {permissions: []admin.Permission{admin.ReadApprovals}},
	"approve reject":          {permissions: []admin.Permission{admin.ReadApprovals, admin.ReadOfficers, admin.Vote}},
	"approve show":            {permissions: []admin.Permission{admin.ReadApprovals, admin.ReadOfficers}},
	"approve sign":            {permissions: []admin.Permission{admin.ReadApprovals, admin.ReadOfficers, admin.Vote}},
	"audit erase":             {permissions: []admin.Permission{admin.EraseLedger}},
	"hsm add":                 {permissions: []admin.Permission{admin.ManageHSM, admin.ReadApprovals, admin.Propose}},
	"hsm admit":               {permissions: []admin.Permission{admin.ManageHSM}},
	"hsm backup":              {permissions: []admin.Permission{admin.ReadBackups, admin.ManageBackups, admin.ReadApprovals, admin.Propose}},
	"hsm ceremonies":          {permissions: []admin.Permission{admin.ReadHSM}},
	"hsm drain":               {permissions: []admin.Permission{admin.ManageHSM}},
	"hsm fence":               {permissions: []admin.Permission{admin.ManageHSM}},
	"hsm info":                {permissions: []admin.Permission{admin.ReadHSM}},
	"hsm list":                {permissions: []admin.Permission{admin.ReadHSM}},
	"hsm remove":              {permissions: []admin.Permission{admin.ReadHSM, admin.ReadApprovals, admin.Propose}},
	"hsm retire":              {permissions: []admin.Permission{admin.ReadApprovals, admin.Propose}},
	"hsm share":               {permissions: []admin.Permission{admin.ReadHSM, admin.Vote}},
	"hsm split-so-pin":        {permissions: []admin.Permission{admin.ReadApprovals, admin.Propose}},
	"hsm verify":              {permissions: []admin.Permission{admin.ManageHSM}},
	"key adopt":               {permissions: []admin.Permission{admin.ManageHSM, admin.ReadApprovals, admin.Propose}},
	"key describe":            {permissions: []admin.Permission{admin.ManageKeys}},
	"key destroy":             {permissions: []admin.Permission{admin.ReadKeys, admin.ReadApprovals, admin.Propose}},
	"key disable":             {permissions: []admin.Permission{admin.ManageKeys}},
	"key enable":              {permissions: []admin.Permission{admin.ManageKeys}},
	"key generate":            {permissions: []admin.Permission{admin.ReadApprovals, admin.Propose}},
	"key import":              {permissions: []admin.Permission{admin.ReadApprovals, admin.Propose}},
	"key import-session":      {permissions: []admin.Permission{admin.ManageHSM}},
	"key list":                {permissions: []admin.Permission{admin.ReadKeys}},
	"key repair":              {permissions: []admin.Permission{admin.ReadApprovals, admin.Propose}},
	"key show":                {permissions: []admin.Permission{admin.ReadKeys}},
	"machine add-certificate": {permissions: []admin.Permission{admin.ManageMachines}},
	"machine list":            {permissions: []admin.Permission{admin.ReadMachines}},
	"machine new-token":       {permissions: []admin.Permission{admin.ManageMachines}},
	"machine revoke":          {permissions: []admin.Permission{admin.ManageMachines}},
	"officer accept":          {permissions: []admin.Permission{admin.ReadOfficers, admin.ReadApprovals, admin.Propose}},
	"officer add":             {permissions: []admin.Permission{admin.ReadOfficers, admin.ReadApprovals, admin.Propose}},
	"officer change":          {permissions: []admin.Permission{admin.ReadOfficers, admin.ReadApprovals, admin.Propose}},
	"officer invite":          {permissions: []admin.Permission{admin.ManageOfficers}},
	"officer list":            {permissions: []admin.Permission{admin.ReadOfficers}},
	"officer quorum":          {permissions: []admin.Permission{admin.ReadOfficers, admin.ReadApprovals, admin.Propose}},
	"officer remove":          {permissions: []admin.Permission{admin.ReadOfficers, admin.ReadApprovals, admin.Propose}},
	"officer roles":           {permissions: []admin.Permission{admin.ReadOfficers, admin.ReadApprovals, admin.Propose}},
	"officer withdraw":        {permissions: []admin.Permission{admin.ManageOfficers}},
	"sign":                    {permissions: []admin.Permission{admin.SignDocuments}},

	"audit export":  {local: "reads the database beside the server"},
	"audit keys":    {local: "reads an export or the database"},
	"audit open":    {local: "reads an export or the database"},
	"audit recover": {local: "works on a database that no server uses, with the officers' warrant"},
	"audit surplus": {local: "reads an HSM's log and the database"},
	"audit verify":  {local: "reads the database beside the server"},
	"audit why":     {local: "reads the database beside the server"},
	"dev":           {local: "is the server"},
	"doctor":        {local: "looks at configuration and tokens of this machine"},
	"hsm qualify":   {local: "tries a token that is in no cluster"},
	"hsm rehearse":  {local: "tries a backup on tokens of its own"},
	"hsm restore":   {local: "begins a ledger, with the officers' warrant"},
	"init":          {local: "begins a ledger"},
	"officer new":   {local: "makes a key on the officer's own machine"},
	"serve":         {local: "is the server"},
	"verify":        {local: "verifies a file"},
	"whoami":        {local: "asks the server who it is taken for; whoever is known may"},
}

// tell writes into the help of each command which permission it needs.
func tell(c *cobra.Command) {
	if n := needs[strings.TrimPrefix(c.CommandPath(), "chancery ")]; len(n.permissions) > 0 {
		var names []string
		for _, p := range n.permissions {
			names = append(names, string(p))
		}
		if c.Long == "" {
			c.Long = c.Short + "."
		}
		c.Long += fmt.Sprintf("\n\nNeeds at the server: %s.", strings.Join(names, ", "))
	}
	for _, sub := range c.Commands() {
		tell(sub)
	}
}
