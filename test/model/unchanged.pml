/*
 * unchanged.pml: rows read in unchanged pages, against changes of these pages.
 *
 * A backend verifies one key twice.  A writer changes its row in place, moves it to
 * another block, and rolls back.  A vacuum moves rows within a page.  CLUSTER gives
 * the table a new file.  Buffers are used for other blocks at any time.
 */
#define VERIFIES 2
#define CHANGES 2
#define FILES 2
#define BLOCKS 2
#define BUFFERS 2
#define NONE 255

#define PAGE(file, block) ((file) * BLOCKS + (block))

/* The pages, by file and block. */
byte lsn[FILES * BLOCKS];
byte layout[FILES * BLOCKS];	/* which bytes are which row's */
bool is_locked[FILES * BLOCKS];	/* exclusively */
byte last_lsn = 1;
byte buffer[BUFFERS] = NONE;	/* the page that a buffer holds */
byte pins[BUFFERS];

/* The row: its versions, the page of each, and which one is changed or locked. */
byte committed;
byte page_of[CHANGES + 1];
bool is_changing[CHANGES + 1];	/* xmax is set, and is not known to be void */

byte present_file;
bool file_is_dropped[FILES];
byte sent;						/* messages about the table, ever */
byte sharers;					/* of the table's lock */
bool is_exclusive;

/* The entry's place of the row; lsn 0: of a page that may be changing. */
typedef Place
{
	byte buffer;
	byte block;
	byte lsn;
	byte layout;
	byte version				/* the one that stands there */
};
Place entry;
byte returned;					/* the last version whose COMMIT has returned */


/* Read a page into a buffer that nobody has pinned, if no buffer has it. */
inline load(page, into)
{
	if
	:: buffer[0] == page -> into = 0
	:: buffer[1] == page -> into = 1
	:: buffer[0] != page && buffer[1] != page && pins[0] == 0 -> into = 0
	:: buffer[0] != page && buffer[1] != page && pins[1] == 0 -> into = 1
	fi;
	buffer[into] = page
}

/* take_messages() of cache.c, and store_forget_file() */
inline take_messages()
{
	if
	:: taken != sent || is_stale ->
		taken = sent;
		is_stale = false;
#ifndef MUTANT_KEEP_FILE
		file = NONE
#endif
	:: else
	fi
}

/* store_find_unchanged(): sets answer if the page is unchanged. */
inline find_unchanged()
{
	atomic {
		if
		:: mine.lsn == 0 || file == NONE -> goto read
#ifndef MUTANT_NO_TAG
		:: mine.lsn != 0 && file != NONE && buffer[mine.buffer] != PAGE(file, mine.block) -> goto read
#endif
		:: else -> pins[mine.buffer]++
		fi
	}
	atomic {
#ifndef MUTANT_NO_LOCK
		!is_locked[buffer[mine.buffer]];
#endif
		if
#ifndef MUTANT_NO_LSN
		:: lsn[buffer[mine.buffer]] != mine.lsn -> pins[mine.buffer]--; goto read
#endif
		:: else
		fi;
#ifdef MUTANT_NO_PIN
		pins[mine.buffer]--
#endif
	}
	/* The row is read in the page, which must still be there. */
	atomic {
#ifndef MUTANT_NO_TAG
		assert(buffer[mine.buffer] == PAGE(file, mine.block) && layout[buffer[mine.buffer]] == mine.layout);
#endif
#ifndef MUTANT_NO_PIN
		pins[mine.buffer]--;
#endif
		answer = mine.version;
		goto judge
	}
}

/* read_row() */
inline read_row()
{
	atomic {
		!is_exclusive;
		sharers++;
		if
		:: taken != sent -> taken = sent; is_stale = true
		:: else
		fi;
		read_file = present_file
	}
	answer = committed;				/* the snapshot decides */
	atomic {
		!is_locked[page_of[answer]];
		if
		:: buffer[mine.buffer] == PAGE(read_file, mine.block) && page_of[answer] == buffer[mine.buffer] ->
			/* read_at_place(): the row and the LSN under the page's lock */
			mine.lsn = lsn[buffer[mine.buffer]];
			mine.layout = layout[buffer[mine.buffer]];
#ifndef MUTANT_NOTE_CHANGING
			if
			:: is_changing[answer] -> mine.lsn = 0
			:: else
			fi
#endif
		:: else ->
			/* read_by_index() */
			mine.lsn = 0;
			mine.block = page_of[answer] % BLOCKS;
			load(page_of[answer], mine.buffer)
		fi;
		mine.version = answer;
		sharers--;
		file = read_file;
		read_file = 0
	}
	/* usage_record(): the entry gets what was read, whenever that was. */
	atomic {
		entry.buffer = mine.buffer;
		entry.block = mine.block;
		entry.lsn = mine.lsn;
		entry.layout = mine.layout;
		entry.version = mine.version
	}
}

active [1] proctype backend()
{
	byte taken, read_file, answer, must, verifies;
	byte file = NONE;
	bool is_stale;				/* a message was taken and is not handled */
	Place mine;

	do
	:: verifies < VERIFIES ->
		verifies++;
		atomic {
			must = returned;
			take_messages();
			mine.buffer = entry.buffer;
			mine.block = entry.block;
			mine.lsn = entry.lsn;
			mine.layout = entry.layout;
			mine.version = entry.version
		}
		find_unchanged();
read:
		read_row();
judge:
		atomic {
			assert(answer >= must);
			answer = 0;
			must = 0;
			mine.buffer = 0;
			mine.block = 0;
			mine.lsn = 0;
			mine.layout = 0;
			mine.version = 0
		}
	:: else -> break
	od
}

/* Versions are changed one after the other. */
active proctype writer()
{
	byte version = 1;

	do
	:: version <= CHANGES ->
		atomic {
			!is_exclusive;
			sharers++
		}
		/* The change: in its page, or to another one.  WAL moves both LSNs. */
		atomic {
			!is_locked[page_of[committed]];
			last_lsn++;
			is_changing[committed] = true;
			if
			:: page_of[version] = page_of[committed]
			:: page_of[version] = PAGE(present_file, 1 - page_of[committed] % BLOCKS)
			fi;
			lsn[page_of[committed]] = last_lsn;
			lsn[page_of[version]] = last_lsn
		}
		if
		:: committed = version;
			sharers--;
			returned = version
		:: is_changing[committed] = false;		/* ROLLBACK */
			sharers--
		fi;
		version++
	:: else -> break
	od
}

/* A vacuum, of one page: it looks for pins once, moves rows, then sets the LSN. */
active proctype vacuum()
{
	atomic {
		!is_exclusive;
		sharers++;
		(buffer[0] != PAGE(0, 0) || pins[0] == 0) && (buffer[1] != PAGE(0, 0) || pins[1] == 0);
		is_locked[PAGE(0, 0)] = true
	}
	layout[PAGE(0, 0)]++;
	atomic {
		last_lsn++;
		lsn[PAGE(0, 0)] = last_lsn;
		is_locked[PAGE(0, 0)] = false;
		sharers--
	}
}

/* CLUSTER, or another command that writes the table into a new file. */
active proctype cluster()
{
	atomic {
		sharers == 0;
		is_exclusive = true;
		last_lsn++;
		page_of[committed] = PAGE(1, 0);
		lsn[PAGE(1, 0)] = last_lsn;
		lsn[PAGE(1, 1)] = last_lsn;
		is_changing[committed] = false
	}
	present_file = 1;
	sent++;
	is_exclusive = false;
	/* The buffers of the old file go later. */
	atomic {
		pins[0] == 0 && pins[1] == 0;
		file_is_dropped[0] = true;
		if
		:: buffer[0] < PAGE(1, 0) -> buffer[0] = NONE
		:: else
		fi;
		if
		:: buffer[1] < PAGE(1, 0) -> buffer[1] = NONE
		:: else
		fi
	}
}

/* Other work of the server: any block of a file of this table, or another table's. */
active proctype others()
{
	byte page, into;

end:
	do
	:: atomic {
		if
		:: page = PAGE(0, 0)
		:: page = PAGE(0, 1)
		:: page = PAGE(1, 0)
		:: page = PAGE(1, 1)
		fi;
		if
		:: !file_is_dropped[page / BLOCKS] && (page / BLOCKS <= present_file) && (pins[0] == 0 || pins[1] == 0) ->
			load(page, into)
		:: else
		fi;
		page = 0;
		into = 0
	   }
	od
}
