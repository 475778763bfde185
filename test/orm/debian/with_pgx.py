# test/orm/debian/with_pgx.py: pgx, by pgx.go, which is built from the sources of Debian's package.
import atexit, os, re, shutil, subprocess, tempfile
import bridge
from bridge import logging_to

folder = tempfile.mkdtemp()
atexit.register(shutil.rmtree, folder)
command = [os.path.join(folder, 'pgx')]
subprocess.run(['go', 'build', '-o', command[0], os.path.join(os.path.dirname(__file__), 'pgx.go')], check=True,
    env={**os.environ, 'GO111MODULE': 'off', 'GOPATH': '/usr/share/gocode', 'GOCACHE': os.path.join(folder, 'cache'), 'GOFLAGS': ''})
status = subprocess.run(['dpkg', '-s', 'golang-github-jackc-pgx-v4-dev'], capture_output=True, text=True).stdout
title, version = 'pgx', re.search(r'^Version: ([\d.]+)', status, re.M).group(1)


def Db(**where):
    return bridge.Db(command, **where)
