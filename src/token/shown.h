/*
 * shown.h
 *		A value as a message may show it.
 */
#ifndef SHOWN_H
#define SHOWN_H

extern char *shown_text(text *value);

#endif
