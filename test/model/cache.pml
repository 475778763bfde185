/*
 * cache.pml: the rows that a backend keeps, against changes of the row.
 *
 * Two sessions verify one key and change it.  Each change makes a version with a
 * higher number.  The first change makes the row.  Only session 0 uses
 * savepoints, and changes other keys.
 */
#define SESSIONS 2
#define ACTIONS (5 - _pid)	/* of a session, without the end */
#define VERSIONS 10
#define NONE 0					/* there is no row */
#define EMPTY 255				/* nothing is kept */

/* PostgreSQL's. */
byte committed;					/* the version that a new snapshot sees */
byte sent;						/* messages in the shared queue, ever */
byte locked_by;					/* who holds the row's lock; 0: nobody */

/* Of the check. */
byte made;						/* the last version */
bool was_committed[VERSIONS];
byte returned;					/* the last version whose COMMIT has returned */

/* AcceptInvalidationMessages() and relcache_callback() */
inline accept()
{
	d_step {
#ifdef MUTANT_FLUSH_AT_ONCE
		if
		:: sent != taken -> kept = EMPTY
		:: else
		fi;
		done = messages + sent - taken;
#endif
		messages = messages + sent - taken;
		taken = sent
	}
}

/* A lock of a relation takes messages, except if it is held already. */
inline open_relation()
{
	atomic {
		if
		:: accept()
		:: skip
		fi
	}
}

/* take_messages() */
inline take_messages()
{
	accept();
	if
	:: done != messages -> kept = EMPTY; done = messages
	:: else
	fi
}

/* A transaction sees its own version. */
#define OWN (own[2] != NONE -> own[2] : own[1])

/* keep() */
inline keep()
{
	if
	::
#ifndef MUTANT_KEEP_NOTHING
	   answer != NONE &&
#endif
#ifndef MUTANT_KEEP_OWN
	   OWN == NONE &&
#endif
#ifndef MUTANT_FLUSH_AT_ONCE
	   messages == before && messages == done &&
#endif
#ifndef MUTANT_KEEP_WHILE_TOLD
	   told == 0 &&
#endif
	   true -> kept = answer
	:: else
	fi
}

inline judge()
{
	if
	:: OWN != NONE -> assert(answer == OWN)
	:: else -> assert(answer >= must && (answer == NONE || was_committed[answer]))
	fi;
	must = 0;
	before = 0;
	answer = NONE
}

/* cache_look() and cache_get() */
inline verify()
{
	atomic {
		must = returned;
		take_messages();
		before = messages;
		answer = kept
	}
	if
	:: answer != EMPTY -> atomic { judge() }
	:: else ->
		open_relation();
		/* The snapshot decides which version the read finds. */
		answer = (OWN != NONE -> OWN : committed);
		atomic {
			open_relation();
			keep();
			judge()
		}
	fi
}

/* cache_tell_change(); the session takes its own message at the command's end. */
inline tell_change()
{
	if
	:: told == 0 -> told = level; message_level = level; messages++
	:: else
	fi
}

/* An INSERT sends no message, because an unknown key is not remembered. */
inline change()
{
	atomic {
		locked_by == 0 || locked_by == _pid + 1;
		locked_by = _pid + 1;
		if
		:: committed == NONE && OWN == NONE -> skip
		:: else -> tell_change()
		fi;
		made++;
		own[level] = made
	}
}

/* ROLLBACK TO; what it returns to may have changed the row too. */
inline rollback_to()
{
	atomic {
		own[2] = NONE;
		level = 1;
		if
		:: message_level == 2 -> message_level = 0; messages++
		:: else
		fi;
#ifndef MUTANT_TOLD_STAYS
		if
		:: told == 2 -> told = 0
		:: else
		fi;
#endif
		if
		:: own[1] == NONE && locked_by == _pid + 1 -> locked_by = 0
		:: else
		fi
	}
}

inline end_transaction()
{
	d_step {
		if
		:: locked_by == _pid + 1 -> locked_by = 0
		:: else
		fi;
		told = 0;
		message_level = 0;
		own[1] = NONE;
		own[2] = NONE;
		level = 1;
		is_open = false
	}
}

inline become_visible()
{
	d_step {
		if
		:: OWN != NONE ->
			committed = OWN;
			was_committed[committed] = true
		:: else
		fi
	}
}

inline send()
{
	if
	:: message_level > 0 -> sent++
	:: else
	fi
}

/* The message comes before the row's lock is released, so before another change. */
inline commit()
{
#ifdef MUTANT_SEND_FIRST
	send();
	become_visible();
#else
	become_visible();
	send();
#endif
	must = OWN;
	end_transaction();
	d_step {
		if
		:: must > returned -> returned = must
		:: else
		fi;
		must = 0
	}
}

inline rollback()
{
	atomic {
		if
		:: message_level > 0 -> messages++
		:: else
		fi;
		end_transaction()
	}
}

active [SESSIONS] proctype session()
{
	byte kept = EMPTY;
	byte messages, done, taken;	/* of cache.c */
	byte told;					/* the level that decides on the message */
	byte message_level;			/* PostgreSQL's: where the message was sent */
	byte own[3];				/* this transaction's versions, by level */
	byte level = 1;				/* 2: in a savepoint */
	bool is_open;
	byte answer, before, must, actions;

	do
	:: actions < ACTIONS ->
		actions++;
		if
		:: verify()
		:: is_open = true; change()
		:: level == 1 && _pid == 0 -> is_open = true; level = 2
		:: is_open && _pid == 0 -> atomic { tell_change() }	/* another row is changed */
		:: level == 2 -> rollback_to()
		:: is_open -> commit()
		:: is_open -> rollback()
		fi
	:: else -> break
	od;
	if
	:: is_open -> commit()
	:: else
	fi
}
