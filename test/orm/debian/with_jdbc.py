# test/orm/debian/with_jdbc.py: JDBC, by Jdbc.java.
import os, subprocess
import bridge
from bridge import logging_to

jars = ':'.join(f'/usr/share/java/{name}.jar' for name in ('postgresql', 'gson'))
command = ['java', '-XX:TieredStopAtLevel=1', '-cp', jars, os.path.join(os.path.dirname(__file__), 'Jdbc.java')]
title, version = 'JDBC', subprocess.run([*command, 'version'], capture_output=True, text=True).stdout.strip()


def Db(**where):
    return bridge.Db(command, **where)
